"""A save that is made a second time never changes what somebody may be reading."""

import threading
from pathlib import Path

import pytest
import torch

from loreloop.engine.training import staging
from loreloop.engine.training.model_state import new_state, write_sampler
from loreloop.formats.configuration import read_spec
from loreloop.formats.peft import WEIGHTS_FILE, read_adapter
from loreloop.protocol.errors import BadRequest, FilesGone
from loreloop.protocol.training import LoraSpec
from tests.engine.train_rig import CPU
from tests.tiny import make_tiny_model


@pytest.fixture
def state(tmp_path: Path):
    return new_state(read_spec(make_tiny_model(tmp_path / "model")), LoraSpec(4, 0), torch.float32, CPU)


def written(folder: Path) -> dict[str, tuple[int, int]]:
    """Which file each name means, and when it was written. When it was read last changes as it is compared."""
    return {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in folder.iterdir()}


def test_what_is_equal_stays(state, tmp_path: Path) -> None:
    folder = tmp_path / "sampler"
    saved = write_sampler(folder, state.share, state.master, "tiny")
    before = written(folder)
    assert write_sampler(folder, state.share, state.master, "tiny") == saved
    assert written(folder) == before
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".")] == []


def test_what_was_damaged_is_written_anew(state, tmp_path: Path) -> None:
    folder = tmp_path / "sampler"
    write_sampler(folder, state.share, state.master, "tiny")
    good = (folder / WEIGHTS_FILE).read_bytes()
    (folder / WEIGHTS_FILE).write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    write_sampler(folder, state.share, state.master, "tiny")
    assert (folder / WEIGHTS_FILE).read_bytes() == good


@pytest.mark.parametrize("at_once", [True, False])
def test_readers_find_the_old_files_or_the_new_ones(
    at_once: bool, state, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And never a mixture, nor a file whose bytes change while it is open."""
    if not at_once:
        monkeypatch.setattr(staging, "_exchanged", lambda new, old: False)
    folder, spec, done = tmp_path / "sampler", state.share.share.spec, threading.Event()
    versions = [state.master + number for number in range(2)]
    write_sampler(folder, state.share, versions[0], "tiny", durable=False)
    held, first = (folder / WEIGHTS_FILE).open("rb"), (folder / WEIGHTS_FILE).read_bytes()

    def save() -> None:
        for number in range(1, 40):
            write_sampler(folder, state.share, versions[number % 2], "tiny", durable=False)
        done.set()

    saving = threading.Thread(target=save)
    saving.start()
    n_read = 0
    while not done.is_set():
        try:
            read = read_adapter(folder, spec, torch.float32).flat
        except FilesGone:
            continue  # exchanged between the list and the file, which the list tells
        except BadRequest:
            assert not at_once, "a folder with this name is always there"
            continue
        assert any(torch.equal(read, version) for version in versions)
        n_read += 1
    saving.join()
    assert n_read
    assert held.read() == first
    held.close()


def test_what_a_death_left_beside_it_is_cleared(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    for left in (".one.77.tmp", ".one.78.old", ".other.77.tmp", ".one.two.78.old"):
        (tmp_path / left).mkdir()
    with staging.staged(folder, durable=False) as new:
        (new / "file").write_text("new")
    assert sorted(each.name for each in tmp_path.iterdir()) == [".one.two.78.old", ".other.77.tmp", "one"]
    assert (folder / "file").read_text() == "new"


def test_a_folder_that_was_put_aside_comes_back_where_the_new_one_never_came(tmp_path: Path) -> None:
    (tmp_path / ".one.78.old").mkdir()
    (tmp_path / ".one.78.old" / "file").write_text("old")
    with pytest.raises(OSError, match="full"), staging.staged(tmp_path / "one", durable=False):
        raise OSError("the disk is full")
    assert [each.name for each in tmp_path.iterdir()] == ["one"]
    assert (tmp_path / "one" / "file").read_text() == "old"

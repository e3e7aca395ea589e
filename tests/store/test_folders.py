"""Folders of checkpoints, revisions and pins: where they lie, and how they go; and who may read the data folder."""

import errno
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from loreloop.cli.memory_files import store_of
from loreloop.formats.adding import add
from loreloop.formats.catalog import Catalog
from loreloop.host.log import Log
from loreloop.host.place import prepare
from loreloop.protocol.checksums import renew_sums
from loreloop.protocol.errors import BadRequest, Conflict
from loreloop.protocol.paths import CheckpointKind, CheckpointPath
from loreloop.store import files as store_files
from loreloop.store import sharing
from loreloop.store.files import Files, delete, read_secret
from loreloop.store.inspection import check_place
from loreloop.store.store import Store
from tests.tiny import make_tiny_model


def filled(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names or ("adapter_model.safetensors", "adapter_config.json"):
        (folder / name).write_text(name)
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def checkpoint(name: str, kind: CheckpointKind = CheckpointKind.TRAINING) -> CheckpointPath:
    return CheckpointPath("5f0c:train:0", kind, name)


def test_a_secret_is_made_once_and_read_by_the_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "journal" / "secret"
    first = read_secret(file)
    assert len(first) == 32
    assert read_secret(file) == first
    assert file.stat().st_mode & 0o077 == 0
    assert [path.name for path in file.parent.iterdir()] == ["secret"]


def test_every_checkpoint_has_a_folder_of_its_own(tmp_path: Path) -> None:
    files = Files(tmp_path)
    paths = [checkpoint(name, kind) for name in ("a", "b") for kind in CheckpointKind]
    paths.append(CheckpointPath("5f0c:train:1", CheckpointKind.TRAINING, "a"))
    folders = {files.checkpoint(path) for path in paths}
    assert len(folders) == len(paths)
    assert all(folder.parent.is_dir() and folder.is_relative_to(tmp_path / "checkpoints") for folder in folders)


def test_a_path_too_long_for_the_system_is_refused_before_it_is_used(tmp_path: Path) -> None:
    """Also where only what is written into the folder would not fit any more."""
    deep = tmp_path
    while (left := 3900 - len(bytes(deep))) > 1:
        deep /= "d" * min(200, left - 1)
    Files(deep).checkpoint(checkpoint("short"))
    for place in (lambda: Files(deep).checkpoint(checkpoint("x" * 100)), lambda: Files(deep).revision("y" * 200)):
        with pytest.raises(BadRequest, match="longer than this system takes"):
            place()


@pytest.mark.parametrize("name", ["../../outside", "/etc", "a/b", "s:sample:1"])
def test_no_id_leads_out_of_its_folder(tmp_path: Path, name: str) -> None:
    files = Files(tmp_path)
    filled(tmp_path / "source")
    assert files.revision(name).parent == tmp_path / "revisions"
    assert files.pin(tmp_path / "source", name).parent == tmp_path / "journal" / "pins"


def test_a_pin_outlives_what_it_was_made_of(tmp_path: Path) -> None:
    source = filled(tmp_path / "source")
    before = contents(source)
    pin = Files(tmp_path).pin(source, "run:3")
    delete(source)
    assert contents(pin) == before


def test_a_pin_costs_no_second_copy(tmp_path: Path) -> None:
    source = filled(tmp_path / "source")
    pin = Files(tmp_path).pin(source, "run:3")
    assert all(os.path.samefile(path, pin / path.name) for path in source.iterdir())


def test_pinning_twice_keeps_the_first_pin(tmp_path: Path) -> None:
    source = filled(tmp_path / "source", "one")
    files = Files(tmp_path)
    first = files.pin(source, "run:3")
    filled(source, "two")
    assert files.pin(source, "run:3") == first
    assert contents(first) == {"one": "one"}


def test_a_new_request_is_given_no_pin_of_other_files(tmp_path: Path) -> None:
    source, other, files = filled(tmp_path / "source"), filled(tmp_path / "other", "different"), Files(tmp_path)
    for _ in range(2):
        pin = files.pin(source, "run:3", is_new=True)
    with pytest.raises(Conflict, match="another checkpoint"):
        files.pin(other, "run:3", is_new=True)
    assert contents(pin) == contents(source)


def test_a_pin_that_a_kill_broke_off_is_made_anew(tmp_path: Path) -> None:
    source = filled(tmp_path / "source", *(f"{number}" for number in range(3000)))
    code = "import pathlib, loreloop.store.files as f; f.Files(pathlib.Path('data')).pin(pathlib.Path('source'), 'r')"
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path) as child:
        while child.poll() is None and not any(path.is_file() for path in tmp_path.glob("data/journal/pins/*/*")):
            time.sleep(0.001)
        child.kill()
    assert child.returncode < 0, "killed too late"
    assert len(contents(Files(tmp_path / "data").pin(source, "r"))) == 3000


def test_deleting_takes_the_folder_with_all_it_holds(tmp_path: Path) -> None:
    filled(filled(tmp_path / "a") / "inner")
    delete(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_deleting_what_is_gone_is_no_error(tmp_path: Path) -> None:
    delete(tmp_path / "never was")
    assert list(tmp_path.iterdir()) == []


def test_a_deletion_that_broke_off_does_not_hinder_the_next_one(tmp_path: Path) -> None:
    filled(tmp_path / "a.gone")
    filled(tmp_path / "a")
    delete(tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_checkpoints_of_any_names_are_deleted_one_by_one(tmp_path: Path) -> None:
    files = Files(tmp_path)
    doomed, kept = (filled(files.checkpoint(checkpoint(name))) for name in ("step", "step.gone"))
    delete(doomed)
    assert not doomed.exists()
    assert len(contents(kept)) == 2


@pytest.fixture
def lax_umask() -> Iterator[None]:
    old = os.umask(0)
    yield
    os.umask(old)


def private_parts(folder: Path) -> dict[str, str]:
    return {path.name: oct(path.stat().st_mode & 0o777) for path in (folder, *folder.glob("loreloop.*"))}


@pytest.mark.usefixtures("lax_umask")
def test_data_log_and_database_are_read_by_their_owner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log's old files and the database's own log among them."""
    data = tmp_path / "above" / "data"
    prepare(data)
    monkeypatch.setattr("loreloop.host.log.MAX_FILE_BYTES", 100)
    log = Log(data / "loreloop.log")
    for _ in range(3):
        log.say(logging.INFO, "test", "x" * 90)
    log.close()
    store = Store(data, "os")
    found = private_parts(data)
    store.close()
    assert found.pop("data") == "0o700"
    assert found.keys() >= {"loreloop.log", "loreloop.log.1", "loreloop.db", "loreloop.db-wal", "loreloop.db-shm"}
    assert set(found.values()) == {"0o600"}
    assert private_parts(tmp_path / "above") == {"above": "0o777"}


@pytest.mark.usefixtures("lax_umask")
@pytest.mark.parametrize("verb", ["serve", "other verbs", "models add", "memory"])
def test_whoever_makes_the_data_folder_makes_it_so(tmp_path: Path, verb: str) -> None:
    makers: dict[str, Callable[[Path], object]] = {
        "serve": prepare,
        "other verbs": check_place,
        "models add": lambda data: add(Catalog(data), str(make_tiny_model(tmp_path / "tiny"))),
        "memory": lambda data: store_of(str(data)),
    }
    makers[verb](tmp_path / "data")
    assert private_parts(tmp_path / "data") == {"data": "0o700"}


def test_the_mode_that_somebody_gave_the_folder_stays(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir(mode=0o750)
    prepare(tmp_path / "data")
    assert private_parts(tmp_path / "data") == {"data": "0o750"}


def test_of_two_that_pin_at_once_both_have_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, files = filled(tmp_path / "source"), Files(tmp_path)
    real = store_files._link_all

    def slow(*arguments: Any) -> None:
        monkeypatch.undo()
        real(*arguments)
        files.pin(source, "run:3")

    monkeypatch.setattr(store_files, "_link_all", slow)
    pin = files.pin(source, "run:3")
    assert contents(pin) == contents(source)
    assert list(pin.parent.iterdir()) == [pin]


def test_what_cannot_be_linked_leaves_nothing_behind(tmp_path: Path) -> None:
    files = Files(tmp_path)
    with pytest.raises(FileNotFoundError):
        files.pin(tmp_path / "none", "run:3")
    assert list((tmp_path / "journal" / "pins").iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ENOENT])
def test_what_the_system_says_of_a_link_is_told_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    source, files = filled(tmp_path / "source"), Files(tmp_path)
    monkeypatch.setattr("loreloop.store.files.os.link", refusing(number))
    with pytest.raises(OSError) as told:
        files.pin(source, "run:3")
    assert told.value.errno == number
    assert list((tmp_path / "journal" / "pins").iterdir()) == []


def test_a_file_that_can_have_no_more_names_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, files, synced = filled(tmp_path / "source"), Files(tmp_path), list[Path]()
    renew_sums(source)
    monkeypatch.setattr("loreloop.store.files.os.link", refusing(errno.EMLINK))
    monkeypatch.setattr("loreloop.store.files.sync_path", synced.append)
    for _ in range(2):
        pin = files.pin(source, "run:3", is_new=True)
    assert contents(pin) == contents(source)
    assert {path.name for path in synced} >= contents(source).keys()


def refusing(number: int) -> Callable[[Path, Path], None]:
    def link(source: Path, target: Path) -> None:
        raise OSError(number, os.strerror(number), str(source))

    return link


def test_a_pin_that_is_there_is_synced_before_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever made it may have been stopped before its sync."""
    source, files = filled(tmp_path / "source"), Files(tmp_path)
    pin = files.pin(source, "run:3")
    synced: list[Path] = []
    monkeypatch.setattr("loreloop.store.files.sync_path", synced.append)
    monkeypatch.setattr("loreloop.store.files.sync_names", lambda path, n_levels: synced.append(path.parent))
    assert files.pin(source, "run:3") == pin
    assert synced == [pin, pin.parent]


def test_a_copy_again_is_nothing_new_and_another_ones_place_is_refused(tmp_path: Path) -> None:
    source, other = filled(tmp_path / "source"), filled(tmp_path / "other", "different")
    for _ in range(2):
        sharing.link_files(source, tmp_path / "copy")
    assert contents(tmp_path / "copy") == contents(source)
    with pytest.raises(BadRequest, match="another checkpoint"):
        sharing.link_files(other, tmp_path / "copy")
    assert contents(tmp_path / "copy") == contents(source)

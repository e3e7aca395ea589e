"""No rank holds an adapter whole, whatever is done with it; and the files are those of one process."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from loreloop.engine.training.model_state import new_state, write_checkpoint, written
from loreloop.formats.configuration import read_spec
from loreloop.model.lora import AdapterView
from loreloop.parallel.place import ALONE
from loreloop.protocol.errors import OutOfService
from tests.engine.train_rig import CPU
from tests.parallel.adapter_rank import LORA, peaks, rewritten, struck
from tests.parallel.rig import on_ranks
from tests.parallel.scene import whole_state
from tests.tiny import make_tiny_model

SITE_BYTES, SLACK = 4_000_000, 4_000_000  # of the largest site, and what measures and libraries take
# Vectors of a rank's share that stay, or that are there until all is read.
VECTORS = {"create": 5, "load state": 4, "load sampler": 1}


@pytest.mark.parametrize("mesh", ["ep=2", "pp=2"])
def test_no_rank_holds_more_than_its_share_and_a_site(mesh: str, tmp_path: Path) -> None:
    shape = {"hidden_size": 256, "moe_intermediate_size": 128, "num_experts": 32, "num_hidden_layers": 6}
    folder = make_tiny_model(tmp_path / "model", "qwen3_moe", **shape)
    (tmp_path / "ranks").mkdir()
    for found in on_ranks(mesh, tmp_path, peaks, folder, tmp_path / "ranks"):
        share, whole = found.pop("share"), found.pop("whole")
        # As much as would show where an adapter was put together.
        assert whole > 2 * SITE_BYTES + SLACK + 10_000_000
        for work, n_bytes in found.items():
            # A site comes in, and is put in its place or cut for the file.
            most = VECTORS.get(work, 0) * share + 2 * SITE_BYTES + SLACK
            assert n_bytes < most, (work, n_bytes, share, whole)


@pytest.mark.parametrize("mesh", ["tp=4", "ep=2", "pp=2", "pp=2,ep=2,tp=2"])
def test_files_are_those_of_one_process(mesh: str, tmp_path: Path) -> None:
    folder = with_source(tmp_path)
    # Stages add up as one process does, so that gradients too are equal to the bit.
    arguments = folder, tmp_path / "source"
    rewritten(ALONE, *arguments, tmp_path / "one", mesh == "pp=2")
    on_ranks(mesh, tmp_path, rewritten, *arguments, tmp_path / "ranks", mesh == "pp=2")
    assert_equal_files(tmp_path / "one", tmp_path / "ranks")


FIRST = {
    "disk": "A file could not be read or written: [Errno 27] File too large.",
    "memory": "The adapter could not be put together or written (MemoryError: no room); see the log.",
}


@pytest.mark.parametrize("mesh", ["tp=2", "pp=2"])
@pytest.mark.parametrize("fault", FIRST)
def test_what_fails_on_the_first_process_amid_a_stream_ends_the_request_on_all(
    fault: str, mesh: str, tmp_path: Path
) -> None:
    folder = with_source(tmp_path)
    for name in ("met", "met again"):
        (tmp_path / name).mkdir()
    on_ranks(mesh, tmp_path / "met", rewritten, folder, tmp_path / "source", tmp_path / "one", True)
    first, other = on_ranks(
        mesh, tmp_path / "met again", struck, folder, tmp_path / "source", tmp_path / "ranks", fault
    )
    assert first == [FIRST[fault]] * 4
    assert other == ["The first process of this engine could not do it; see the log."] * 4
    assert_equal_files(tmp_path / "one", tmp_path / "ranks")


class First:
    """As much of a share as `written` asks for, on the first of two processes."""

    n_ranks, is_first = 2, True

    def __init__(self) -> None:
        self.place = self

    def by_first(self, work: Callable[[], str], kind: type[str]) -> str:
        return work()


def test_what_fails_of_a_stream_that_the_file_did_not_want_ends_the_request_too() -> None:
    def no_room() -> Iterator[AdapterView]:
        raise MemoryError("no room")
        yield

    with pytest.raises(OutOfService, match="no room"):
        written(First(), [no_room()], lambda: "a file", str)  # type: ignore[arg-type]


def with_source(tmp_path: Path) -> Path:
    """A model, beside a checkpoint after three steps."""
    folder = make_tiny_model(tmp_path / "model", "qwen3_moe", num_key_value_heads=2)
    state = whole_state(read_spec(folder), LORA)
    state.moment1.copy_(state.master * 0.1)
    state.moment2.copy_(state.master.square())
    state.n_steps = 3
    write_checkpoint(tmp_path / "source", state, "tiny")
    return folder


def assert_equal_files(one: Path, ranks: Path) -> None:
    written = sorted(file for file in one.rglob("*") if file.is_file())
    assert len(written) == 1 + 4 + 3 + 3
    for file in written:
        other = ranks / file.relative_to(one)
        assert other.read_bytes() == file.read_bytes(), other


def test_a_seed_means_the_adapter_that_it_always_meant(tmp_path: Path) -> None:
    spec = read_spec(make_tiny_model(tmp_path / "model", "qwen3_moe"))
    fresh, generator = new_state(spec, LORA, torch.float32, CPU).weights, torch.Generator().manual_seed(LORA.seed)
    for layer, site in fresh.layout.places:
        a_PRI = torch.empty_like(fresh.a(layer, site))
        bound = 1.0 / a_PRI.shape[-1] ** 0.5
        assert torch.equal(fresh.a(layer, site), a_PRI.uniform_(-bound, bound, generator=generator))
        assert not any(b_OR.any() for b_OR in fresh.b(layer, site))

"""A rank reads of a folder just what it holds, byte for byte what a cut of the whole gives, and no more memory."""

import json
from pathlib import Path

import psutil
import pytest
import torch

from loreloop.formats import weight_files
from loreloop.formats.held_parts import Outline, part_of
from loreloop.formats.load import load_weights, read_stored_spec
from loreloop.parallel.mesh import parse_mesh
from loreloop.parallel.place import Place
from loreloop.parallel.shares import share_of
from tests.engine.train_rig import CPU
from tests.tiny import make_tiny_model

FAMILIES = ["qwen2", "phi3", "gemma2", "gpt_oss", "qwen3_moe", "deepseek_v3"]


@pytest.fixture
def n_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes of each read, whole or in part."""
    read: list[int] = []
    whole, part = weight_files.Stored.__call__, weight_files.Stored.part

    def counted(way):
        def reading(*arguments):
            tensor = way(*arguments)
            read.append(tensor.numel() * tensor.element_size())
            return tensor

        return reading

    monkeypatch.setattr(weight_files.Stored, "__call__", counted(whole))
    monkeypatch.setattr(weight_files.Stored, "part", counted(part))
    return read


def n_bytes(weights: dict[str, torch.Tensor]) -> int:
    return sum(weight.numel() * weight.element_size() for weight in weights.values())


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_rank_reads_is_its_cut_of_the_whole(family: str, size: int, tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model", family, num_key_value_heads=4)
    spec, whole = load_weights(folder, dtype=torch.float32, device=CPU)
    for rank in range(size):
        share = share_of(spec, parse_mesh(f"tp={size}"), rank)
        _, mine = load_weights(folder, dtype=torch.float32, device=CPU, held=lambda spec, share=share: share.weight)
        wanted = {role: cut for role, weight in whole.items() if (cut := share.weight(role, weight)) is not None}
        assert mine.keys() == wanted.keys()
        assert all(torch.equal(mine[role], wanted[role]) for role in wanted)


def test_each_byte_is_read_once_by_the_rank_that_holds_it(tmp_path: Path, n_read: list[int]) -> None:
    folder = make_tiny_model(tmp_path / "model", "qwen3", num_key_value_heads=4)
    spec = read_stored_spec(folder)
    for rank in range(4):
        n_read.clear()
        share = share_of(spec, parse_mesh("tp=4"), rank)
        _, mine = load_weights(folder, dtype=torch.float32, device=CPU, held=lambda spec, share=share: share.weight)
        assert sum(n_read) == n_bytes(mine)


def test_what_a_rank_does_not_hold_is_not_read(tmp_path: Path, n_read: list[int]) -> None:
    """As a pipeline's ranks hold some layers."""
    folder = make_tiny_model(tmp_path / "model", "qwen3_moe")

    def held(role: str, weight: torch.Tensor) -> torch.Tensor | None:
        return weight if role.startswith("1.") else None

    _, mine = load_weights(folder, dtype=torch.float32, device=CPU, held=lambda spec: held)
    assert mine
    assert all(role.startswith("1.") for role in mine)
    assert sum(n_read) == n_bytes(mine)


def test_what_is_more_than_a_cut_leaves_no_trace() -> None:
    shape = (8, 4)
    assert part_of(lambda role, weight: weight * 2, "w", shape) is None
    assert part_of(lambda role, weight: torch.zeros_like(weight)[:2], "w", shape) is None
    assert part_of(lambda role, weight: weight.T[:2], "w", shape) is None
    part = part_of(lambda role, weight: weight[torch.tensor([1, 2, 5])][:, 1:3][1:].contiguous(), "w", shape)
    assert part is not None
    assert (part.rows.tolist(), part.columns) == ([2, 5], slice(1, 3))
    assert [(run.source, run.place) for run in part.runs(slice(2, 8))] == [
        (slice(0, 1), slice(0, 1)),
        (slice(3, 4), slice(1, 2)),
    ]
    assert isinstance(Outline.of((3,))[:2], Outline)

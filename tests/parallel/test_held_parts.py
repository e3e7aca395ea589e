"""A rank reads of a folder just what it holds, byte for byte what a cut of the whole gives, and no more memory."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from loreloop.cli.serve import MEMORY
from loreloop.formats import stored_tensors
from loreloop.formats.configuration import read_config
from loreloop.formats.held_parts import Outline, part_of
from loreloop.formats.load import load_weights, read_stored_spec
from loreloop.formats.quantized_blocks import Blocks, write_blocks
from loreloop.formats.shards import ShardWriter
from loreloop.model.families.table import family_of
from loreloop.model.packed_weights import PackedWeight
from loreloop.model.weights import decoder_weights
from loreloop.parallel.mesh import parse_mesh
from loreloop.parallel.shares import share_of
from tests.engine.train_rig import CPU
from tests.formats.test_mxfp4 import packed_folder
from tests.tiny import make_tiny_model

ROOT, SHARD_BYTES, SLACK_BYTES = Path(__file__).parents[2], 30_000_000, 8_000_000
OF_EXPERTS = re.compile(r".*\.layers\.0\.mlp\.experts\.\w+_proj_(blocks|scales)")
FAMILIES = ["qwen2", "phi3", "gemma2", "gpt_oss", "qwen3_moe", "deepseek_v3"]


@pytest.fixture
def n_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes of each read, whole or in part."""
    read: list[int] = []
    whole, part = stored_tensors.Stored.__call__, stored_tensors.Stored.part

    def counted(way):
        def reading(*arguments):
            tensor = way(*arguments)
            read.append(tensor.numel() * tensor.element_size())
            return tensor

        return reading

    monkeypatch.setattr(stored_tensors.Stored, "__call__", counted(whole))
    monkeypatch.setattr(stored_tensors.Stored, "part", counted(part))
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


@pytest.mark.parametrize("quantize", [False, True], ids=["plain", "in 4 bits"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("mesh", ["pp=3", "pp=3,tp=2"])
def test_each_byte_is_read_once_by_the_stage_that_holds_it(
    mesh: str, tied: bool, quantize: bool, tmp_path: Path, n_read: list[int]
) -> None:
    shape = {"num_hidden_layers": 5, "num_key_value_heads": 4, "tie_word_embeddings": tied}
    folder = make_tiny_model(tmp_path / "model", "qwen3", **shape)
    spec, whole = load_weights(folder, dtype=torch.float32, device=CPU)
    for rank in range(parse_mesh(mesh).n_ranks):
        n_read.clear()
        share = share_of(spec, parse_mesh(mesh), rank)
        _, mine = load_weights(
            folder, dtype=torch.float32, device=CPU, quantize=quantize, held=lambda spec, share=share: share.weight
        )
        cuts = {role: cut for role, weight in whole.items() if (cut := share.weight(role, weight)) is not None}
        assert {role: weight.shape for role, weight in mine.items()} == {role: cut.shape for role, cut in cuts.items()}
        # What is rounded is read whole, and cut when it is packed; what lies on other stages is not read even then.
        is_whole = quantize and "tp" in mesh
        held = {role: whole[role] for role, cut in cuts.items() if cut.numel()} if is_whole else cuts
        assert n_bytes(held) >= sum(n_read) if is_whole else sum(n_read) == n_bytes(held)


def with_blocks(folder: Path) -> Path:
    """The folder, in which all that is packed has blocks of its own beside the tensors."""
    spec, blocks = read_stored_spec(folder), {}
    for weight in decoder_weights(spec, family_of(read_config(folder)).names):
        for piece in weight.pieces if weight.bits else ():
            n_rows, d_in = piece.rows.stop - piece.rows.start, weight.shape[1]
            codes = torch.zeros(n_rows, d_in, dtype=torch.uint8 if weight.bits == 4 else torch.int8)
            scales = torch.ones(n_rows, d_in // 32, dtype=torch.float16)
            blocks[piece.name] = Blocks(codes, scales, scales if weight.bits == 4 else None)
    write_blocks(folder, blocks)
    return folder


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_stages_read_a_folder_with_blocks_of_its_own(tied: bool, tmp_path: Path) -> None:
    shape = {"num_hidden_layers": 5, "tie_word_embeddings": tied}
    folder = with_blocks(make_tiny_model(tmp_path / "model", "qwen3", **shape))
    spec, whole = load_weights(folder, dtype=torch.float32, device=CPU, quantize=True)
    for rank in range(3):
        share = share_of(spec, parse_mesh("pp=3"), rank)
        _, mine = load_weights(
            folder, dtype=torch.float32, device=CPU, quantize=True, held=lambda spec, share=share: share.weight
        )
        cuts = {role: cut for role, weight in whole.items() if (cut := share.weight(role, weight)) is not None}
        assert {role: weight.shape for role, weight in mine.items()} == {role: cut.shape for role, cut in cuts.items()}
        assert any(isinstance(weight, PackedWeight) for weight in mine.values())


def test_what_a_rank_does_not_hold_is_not_read(tmp_path: Path, n_read: list[int]) -> None:
    """As a pipeline's ranks hold some layers."""
    folder = make_tiny_model(tmp_path / "model", "qwen3_moe")

    def held(role: str, weight: torch.Tensor) -> torch.Tensor | None:
        return weight if role.startswith("1.") else None

    _, mine = load_weights(folder, dtype=torch.float32, device=CPU, held=lambda spec: held)
    assert mine
    assert all(role.startswith("1.") for role in mine)
    assert sum(n_read) == n_bytes(mine)


def test_packed_experts_that_a_rank_does_not_hold_are_not_read(tmp_path: Path, n_read: list[int]) -> None:
    """As experts lie on several ranks: of layer 0 all are on another one."""
    folder, _ = packed_folder(tmp_path)
    of_layer = sum(read().nbytes for name, read in stored_tensors.stored_tensors(folder) if OF_EXPERTS.match(name))
    n_read.clear()
    load_weights(folder, dtype=torch.float32, device=CPU)
    all_of_them = sum(n_read)
    n_read.clear()

    def held(role: str, weight: object) -> object | None:
        return None if re.match(r"0\.\d+\.(gate_up|down)$", role) else weight

    _, mine = load_weights(folder, dtype=torch.float32, device=CPU, held=lambda spec: held)
    assert "0.0.gate_up" not in mine
    assert isinstance(mine["1.0.gate_up"], PackedWeight)
    assert of_layer > 0
    assert all_of_them - sum(n_read) == of_layer


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


CHILD = """
import sys, torch
from pathlib import Path
from loreloop.formats.load import load_weights
from loreloop.parallel.mesh import parse_mesh
from loreloop.parallel.shares import share_of

def memory(field):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field)) * 1024

def held(spec):
    return share_of(spec, parse_mesh("tp=4"), 1).weight

def load(folder):
    return load_weights(Path(folder), dtype=torch.float32, device=torch.device("cpu"), held=held)[1]

load(sys.argv[2])  # a small one, so that libraries have their own memory
before = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
mine = load(sys.argv[1])
print(before, memory("VmHWM"), sum(w.numel() * w.element_size() for w in mine.values()))
"""


@pytest.mark.slow
def test_a_rank_s_memory_is_its_weights_and_one_shard_at_most(tmp_path: Path) -> None:
    """Of a model of 420 MB in shards of 30 MB, of which a rank of four holds a bit more than a quarter."""
    shape = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    model = make_tiny_model(tmp_path / "model", "qwen3", num_key_value_heads=4, **shape)
    folder = tmp_path / "shards"
    folder.mkdir()
    writer = ShardWriter(folder, SHARD_BYTES)
    for name, read in stored_tensors.stored_tensors(model):
        writer.add(name, read().clone())
    writer.close()
    (folder / "config.json").write_text((model / "config.json").read_text())
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", **MEMORY}
    small = make_tiny_model(tmp_path / "small", "qwen3", num_key_value_heads=4)
    command = [sys.executable, "-c", CHILD, str(folder), str(small)]
    child = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    before, peak, held = map(int, child.stdout.split())
    whole = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    print(f"{whole / 1e6:.0f} MB whole, {held / 1e6:.0f} MB held, {(peak - before) / 1e6:.0f} MB at the peak")
    assert held < 0.3 * whole
    assert peak - before <= held + SHARD_BYTES + SLACK_BYTES

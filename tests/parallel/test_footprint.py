"""Kimi K2 Thinking and Qwen3-VL-235B by their true configurations, without their size: bytes of each rank by part, and
what ranks say to one another; and the documents' tables of them."""

import re
from pathlib import Path

import pytest
import torch
from torch import distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from loreloop.engine.training.model_state import ModelState
from loreloop.formats.configuration import spec_of
from loreloop.model.families.table import family_of
from loreloop.model.linear import FastProducts
from loreloop.model.packed_weights import PackedWeight
from loreloop.model.weights import decoder_weights
from loreloop.parallel.adapter_share import AdapterShare
from loreloop.parallel.cut_decoder import decoder_of, holding
from loreloop.parallel.footprint import Footprint, Load, footprint
from loreloop.parallel.mesh import Mesh, parse_mesh
from loreloop.parallel.mesh_traffic import sampling_traffic, sent, step_traffic, training_traffic
from loreloop.parallel.place import place_of
from loreloop.parallel.traffic import Work
from loreloop.protocol.training import LoraSpec
from tests.model.test_count import KIMI, PUBLISHED
from tests.parallel.published import CACHED, RANK, ROWS, Rank, kimi, kimi_sends, qwen

SPEC, NAMES = spec_of(KIMI, "Kimi"), family_of(KIMI).names
QWEN = PUBLISHED["Qwen3-VL-235B-A22B"][0]
QWEN_SPEC, QWEN_NAMES = spec_of(QWEN, "Qwen"), family_of(QWEN).names
LORA = LoraSpec(RANK, 0, train_unembed=True)
TABLES = (Path(__file__).parents[2] / "docs" / "scale.md").read_text()
# A mesh, the rank of it that holds most, and what it is by arithmetic.
FIRST = {
    "ep=8": (0, Rank(ep=8)),
    "tp=8": (0, Rank(tp=8)),
    "sp=8": (0, Rank(tp=8, cuts_rows=True)),
    "ep=4,tp=2": (0, Rank(tp=2, ep=4)),
    "ep=64": (0, Rank(ep=64)),
    "ep=8,tp=8": (0, Rank(tp=8, ep=8)),
}
KIMI_RANKS = FIRST | {
    "pp=2,ep=4": (0, Rank(ep=4, routed=31, head=False, under_way=2)),
    "pp=8": (1, Rank(routed=8, dense=0, embedding=False, head=False, under_way=7)),
}
QWEN_RANKS = {mesh: (rank, Rank(**(vars(at) | {"routed": 94, "dense": 0}))) for mesh, (rank, at) in FIRST.items()}
QWEN_RANKS |= {
    "pp=2,ep=4": (0, Rank(ep=4, routed=48, dense=0, head=False, under_way=2)),
    "pp=8": (0, Rank(routed=12, dense=0, head=False, under_way=8)),
}


def load(mesh: Mesh, packing: str) -> Load:
    """One adapter, a cache, and as many micro-batches as there are stages."""
    return Load(LORA, CACHED, ROWS, packing, n_batches=mesh.pp)  # type: ignore[arg-type]


def kimi_at(mesh: Mesh, rank: int) -> Footprint:
    return footprint(SPEC, NAMES, mesh, rank, load(mesh, "experts"))


def qwen_at(mesh: Mesh, rank: int) -> Footprint:
    return footprint(QWEN_SPEC, QWEN_NAMES, mesh, rank, load(mesh, "none"))


@pytest.mark.parametrize("mesh", KIMI_RANKS)
def test_a_rank_of_kimi_holds_what_the_configuration_says(mesh: str) -> None:
    rank, at = KIMI_RANKS[mesh]
    found = kimi_at(parse_mesh(mesh), rank)
    assert vars(found) == pytest.approx(vars(kimi(at)), rel=1e-4)
    stride = max(1, parse_mesh(mesh).n_ranks // 8)
    assert max(kimi_at(parse_mesh(mesh), other).total for other in range(0, 8 * stride, stride)) == found.total


@pytest.mark.parametrize("mesh", QWEN_RANKS)
def test_a_rank_of_qwen_holds_what_the_configuration_says(mesh: str) -> None:
    rank, at = QWEN_RANKS[mesh]
    # The vocabulary is cut at whole tiles, so ranks differ by some rows.
    assert vars(qwen_at(parse_mesh(mesh), rank)) == pytest.approx(vars(qwen(at)), rel=1e-3)


def test_stages_hold_all_layers_together() -> None:
    stages = [footprint(SPEC, NAMES, Mesh(pp=4), rank, Load(LORA, CACHED, ROWS)) for rank in range(4)]
    whole = kimi(Rank())
    assert sum(stage.cache for stage in stages) == whole.cache
    assert sum(stage.inputs for stage in stages) == whole.inputs
    assert sum(stage.experts for stage in stages) == whole.experts


def sends_of(mesh: Mesh, rank: int) -> dict[str, float]:
    """What a rank sends, as `published.Sent` has it."""
    passed = sent(training_traffic(SPEC, mesh, rank, Work(ROWS, ROWS, recomputed=True)), mesh)
    stepped = sent(step_traffic(SPEC, mesh, rank, LORA), mesh)
    drawn = sent(sampling_traffic(SPEC, mesh, rank, Work(32, 32)), mesh)
    by_axis = {"tp": passed["tp"], "ep": passed["ep"], "pp": passed["pp"]}
    return by_axis | {"step": sum(stepped.values()), "sampling": sum(drawn.values())}


SENDING = {mesh: ranks for mesh, ranks in KIMI_RANKS.items() if mesh != "pp=2,ep=4"}


@pytest.mark.parametrize("mesh", SENDING)
def test_a_rank_of_kimi_says_what_the_configuration_says(mesh: str) -> None:
    rank, at = SENDING[mesh]
    assert sends_of(parse_mesh(mesh), rank) == pytest.approx(vars(kimi_sends(at)), rel=0.01, abs=1)


def rows_of(heading: str) -> dict[str, list[float]]:
    """A table's rows by mesh; the table is the first one behind a heading."""
    _, _, behind = TABLES.partition(heading)
    table = re.search(r"(?:^\|.*\n)+", behind, re.MULTILINE)
    assert table, heading
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[0].splitlines()[2:]]
    return {row[0].strip("`"): [0.0 if cell == "–" else float(cell) for cell in row[1:]] for row in cells}


def test_the_documents_tables_have_these_numbers() -> None:
    tables = {"### Kimi K2": (KIMI_RANKS, kimi_at), "### Qwen3-VL": (QWEN_RANKS, qwen_at)}
    for heading, (ranks, at) in tables.items():
        for mesh, (rank, _) in ranks.items():
            found = at(parse_mesh(mesh), rank)
            expected = [size / 1e9 for size in (*vars(found).values(), found.total)]
            assert rows_of(heading)[mesh] == pytest.approx(expected, rel=0.01, abs=0.006), mesh
    for mesh, (rank, _) in SENDING.items():
        expected = [size / 1e9 for size in sends_of(parse_mesh(mesh), rank).values()]
        assert rows_of("### What ranks of Kimi K2 send")[mesh] == pytest.approx(expected, rel=0.01, abs=0.006), mesh


@pytest.mark.parametrize(("n_ranks", "rank"), [(8, 7), (64, 33)])
def test_a_rank_is_built_on_the_meta_device_among_ranks_that_are_not_there(n_ranks: int, rank: int) -> None:
    meta, bf16 = torch.device("meta"), torch.bfloat16
    weights = {
        weight.role: PackedWeight.empty(weight.shape, 4, bf16, meta)
        if weight.bits == 4 and weight.role.split(".")[1].isdecimal()
        else torch.empty(weight.shape, dtype=torch.float32 if weight.fp32 else bf16, device=meta)
        for weight in decoder_weights(SPEC, NAMES)
    }
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=n_ranks)
    try:
        place = place_of(Mesh(ep=n_ranks))
        held = holding(place)(SPEC)
        mine = {role: part for role, weight in weights.items() if (part := held(role, weight)) is not None}
        decoder = decoder_of(SPEC, mine, bf16, FastProducts(), place)
        state = ModelState(AdapterShare(SPEC, LORA, place), bf16, meta)
    finally:
        dist.destroy_process_group()
    expected = kimi_at(Mesh(ep=n_ranks), rank)
    experts = [expert for layer in decoder.layers[1:] for expert in layer.feed_forward.share.experts]
    assert sum(e.gate_up.weight.n_bytes + e.down.weight.n_bytes for e in experts) == expected.experts
    assert len(experts) == 60 * 384 // n_ranks
    held = (state.master.nbytes + state.weights.flat.nbytes, state.moment1.nbytes * 2, state.grad.nbytes)
    assert held == (expected.adapter, expected.moments, expected.gradient)
    plain = [part for part in mine.values() if isinstance(part, torch.Tensor)]
    assert sum(part.nbytes for part in plain) == expected.weights

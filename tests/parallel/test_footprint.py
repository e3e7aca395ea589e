"""Kimi K2 Thinking by its true configuration over 8 and 64 ranks, without its size: bytes of each rank by part."""

import re
from pathlib import Path

import pytest
import torch
from torch import distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from loreloop.engine.training.model_state import ModelState
from loreloop.formats.load import spec_of
from loreloop.model.families.table import family_of
from loreloop.model.linear import FastProducts
from loreloop.model.packed_weights import PackedWeight
from loreloop.model.weights import decoder_weights
from loreloop.parallel.adapter_share import AdapterShare
from loreloop.parallel.cut_decoder import decoder_of, holding
from loreloop.parallel.footprint import Footprint, Load, footprint
from loreloop.parallel.mesh import Mesh
from loreloop.parallel.place import place_of
from loreloop.protocol.training import LoraSpec
from tests.model.test_count import KIMI

SPEC = spec_of(KIMI, "Kimi")
WEIGHTS = list(decoder_weights(SPEC, family_of(KIMI).names))
LOAD = Load(LoraSpec(32, 0, train_unembed=True), cached_tokens=128 * 1024, trained_rows=4096)
TABLE = Path(__file__).parents[2] / "docs" / "scale.md"
D, F, LAYERS, ROUTED, RANK = 7168, 2048, 61, 60, 32


def by_arithmetic(n_ranks: int) -> Footprint:
    """From the published numbers of the configuration alone."""
    latents = D * 1536 + 1536 * 64 * 192 + D * 576 + 512 * 64 * 256 + 64 * 128 * D
    shared_or_dense = ROUTED * 3 * D * F + 3 * D * 18432
    bf16 = 2 * 163840 * D + LAYERS * latents + shared_or_dense + (2 * LAYERS + 1) * D + LAYERS * (1536 + 512)
    router = ROUTED * 384 * (D + 1)
    of_experts = ROUTED * 3 * 384 * F * RANK // n_ranks
    outer = ROUTED * 3 * D * RANK
    rest = RANK * (ROUTED * 3 * (D + F) + 3 * (D + 18432) + 1_940_288 + 171_008)
    adapter = of_experts + outer + rest
    return Footprint(
        experts=ROUTED * 384 * 3 * D * F // n_ranks * 18 // 32,
        weights=2 * bf16 + 4 * router,
        adapter=6 * adapter,
        moments=8 * adapter,
        gradient=4 * adapter,
        cache=128 * 1024 * LAYERS * (512 + 64) * 2,
        inputs=4096 * LAYERS * D * 2,
    )


@pytest.mark.parametrize(("n_ranks", "ranks"), [(8, range(8)), (64, (0, 31, 63))])
def test_every_rank_holds_what_the_configuration_says(n_ranks: int, ranks: range | tuple[int, ...]) -> None:
    expected = vars(by_arithmetic(n_ranks))
    for rank in ranks:
        assert vars(footprint(SPEC, WEIGHTS, Mesh(ep=n_ranks), rank, LOAD)) == pytest.approx(expected, rel=1e-4)


def test_a_stage_s_cache_and_inputs_are_those_of_its_layers() -> None:
    stages = [footprint(SPEC, WEIGHTS, Mesh(pp=4), rank, LOAD) for rank in range(4)]
    whole = by_arithmetic(1)
    assert (sum(stage.cache for stage in stages), sum(stage.inputs for stage in stages)) == (whole.cache, whole.inputs)


@pytest.mark.parametrize("n_ranks", [8, 64])
def test_the_documents_table_has_these_numbers(n_ranks: int) -> None:
    expected = by_arithmetic(n_ranks)
    rows = re.findall(r"^\| (\w+)[^|]*\| ([\d.]+) \| ([\d.]+) \|$", TABLE.read_text(), re.MULTILINE)
    table = {name: float(at_64 if n_ranks == 64 else at_8) for name, at_8, at_64 in rows}
    found = {**vars(expected), "total": expected.total}
    assert table == pytest.approx({name: n / 1e9 for name, n in found.items()}, rel=0.01, abs=0.006)


@pytest.mark.parametrize(("n_ranks", "rank"), [(8, 7), (64, 33)])
def test_a_rank_is_built_on_the_meta_device_among_ranks_that_are_not_there(n_ranks: int, rank: int) -> None:
    meta, bf16 = torch.device("meta"), torch.bfloat16
    weights = {
        weight.role: PackedWeight.empty(weight.shape, 4, bf16, meta)
        if weight.bits == 4 and weight.role.split(".")[1].isdecimal()
        else torch.empty(weight.shape, dtype=torch.float32 if weight.fp32 else bf16, device=meta)
        for weight in WEIGHTS
    }
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=n_ranks)
    try:
        place = place_of(Mesh(ep=n_ranks))
        held = holding(place)(SPEC)
        mine = {role: part for role, weight in weights.items() if (part := held(role, weight)) is not None}
        decoder = decoder_of(SPEC, mine, bf16, FastProducts(), place)
        state = ModelState(AdapterShare(SPEC, LOAD.lora, place), bf16, meta)
    finally:
        dist.destroy_process_group()
    expected = footprint(SPEC, WEIGHTS, Mesh(ep=n_ranks), rank, LOAD)
    experts = [expert for layer in decoder.layers[1:] for expert in layer.feed_forward.share.experts]
    assert sum(e.gate_up.weight.n_bytes + e.down.weight.n_bytes for e in experts) == expected.experts
    assert len(experts) == ROUTED * 384 // n_ranks
    held = (state.master.nbytes + state.weights.flat.nbytes, state.moment1.nbytes * 2, state.grad.nbytes)
    assert held == (expected.adapter, expected.moments, expected.gradient)

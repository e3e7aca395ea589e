"""Layouts of up to 64 ranks, looked at in one process: together the ranks hold every number of a model, each as often
as every other of its tensor, and every number of an adapter counts once."""

import pytest
import torch

from loreloop.formats.configuration import spec_of
from loreloop.model.families.table import family_of
from loreloop.model.lora import LoraLayout
from loreloop.model.weights import decoder_weights
from loreloop.parallel.adapter_share import AdapterShare
from loreloop.parallel.mesh import AXES, Mesh, parse_mesh
from loreloop.parallel.place import Place
from loreloop.parallel.shares import share_of
from loreloop.protocol.training import LoraSpec
from tests.model.test_count import KIMI, PUBLISHED

# The architectures of Kimi K2 and of Qwen3-VL-235B, narrow, and with few layers.
NARROW_KIMI = KIMI | {
    **{
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "num_attention_heads": 16,
        "intermediate_size": 128,
        "moe_intermediate_size": 32,
    },
    **{"n_routed_experts": 64, "q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4},
    **{"v_head_dim": 8, "vocab_size": 1003, "num_key_value_heads": 16},
}
NARROW_QWEN = PUBLISHED["Qwen3-235B-A22B"][0] | {
    **{
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "num_attention_heads": 16,
        "intermediate_size": 128,
        "moe_intermediate_size": 32,
    },
    **{"num_experts": 64, "head_dim": 8, "vocab_size": 1003},
}
MESHES = [
    *("tp=8", "ep=8", "pp=2,tp=4"),
    *(pytest.param(mesh, marks=pytest.mark.slow) for mesh in ("ep=4,tp=2", "ep=64", "ep=8,tp=8", "pp=2,ep=8,tp=4")),
]
CONFIGS = {"kimi": NARROW_KIMI, "qwen": NARROW_QWEN}


@pytest.mark.parametrize("mesh_text", MESHES)
@pytest.mark.parametrize("name", CONFIGS)
def test_ranks_hold_every_number_of_the_base(name: str, mesh_text: str) -> None:
    config, mesh = CONFIGS[name], parse_mesh(mesh_text)
    spec = spec_of(config, name)
    shares = [share_of(spec, mesh, rank) for rank in range(mesh.n_ranks)]
    for weight in decoder_weights(spec, family_of(config).names):
        size = torch.Size(weight.shape).numel()
        numbers, held = torch.arange(size).view(weight.shape), torch.zeros(size, dtype=torch.int64)
        for share in shares:
            mine = share.weight(weight.role, numbers)
            if mine is not None:
                held[mine.flatten()] += 1
        if weight.role.endswith(".qkv"):
            # Of heads of keys there are four, and where there are more ranks, neighbours hold one together.
            assert sorted(set(held.tolist())) == sorted({mesh.ep, mesh.ep * max(1, mesh.tp // 4)})
        else:
            assert set(held.tolist()) == {copies(weight.role, mesh)}, weight.role


CUT = {"o", "q_b", "kv_b", "gate_up", "down", "shared.gate_up", "shared.down"}


def copies(role: str, mesh: Mesh) -> int:
    """How many ranks hold each number of a tensor, by the documents' tables."""
    _, _, site = role.partition(".")
    if role == "final_norm":
        return mesh.n_ranks
    if site.partition(".")[0].isdecimal():
        return 1  # an expert's, cut by width
    return mesh.ep if role in ("embedding", "head") or site in CUT else mesh.ep * mesh.tp


@pytest.mark.parametrize("mesh_text", MESHES)
@pytest.mark.parametrize("form", ["shared_outer", "per_expert"])
@pytest.mark.parametrize("name", CONFIGS)
def test_ranks_hold_every_number_of_an_adapter(name: str, form: str, mesh_text: str) -> None:
    spec, mesh = spec_of(CONFIGS[name], name), parse_mesh(mesh_text)
    lora = LoraSpec(2, 0, experts=form)  # type: ignore[arg-type]
    whole = LoraLayout(spec, lora)
    held, counts = torch.zeros(whole.size), torch.zeros(whole.size)
    for rank in range(mesh.n_ranks):
        # What is asked of a share here says nothing to other ranks, so their groups may be any.
        groups = {axis: None for axis in AXES if mesh.sizes[axis] > 1}
        share = AdapterShare(spec, lora, Place(mesh, rank, groups=groups))  # type: ignore[arg-type]
        numbers = share.share.numbers(lora)
        held[numbers] += 1
        counts[numbers] += 1 if share.counted is None else share.counted.float()
        assert len(numbers.unique()) == len(numbers), "no rank holds a number twice"
    assert (counts == 1).all()
    assert held.max() == mesh.ep * mesh.tp, "a copied factor of attention is on every rank of a stage"
    assert held.min() == 1, "experts' own factors are on one"


def test_a_mesh_of_one_holds_each_number_once() -> None:
    spec = spec_of(NARROW_KIMI, "kimi")
    lora = LoraSpec(2, 0)
    assert torch.equal(share_of(spec, Mesh(), 0).numbers(lora), torch.arange(LoraLayout(spec, lora).size))

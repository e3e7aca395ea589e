"""A plan's memory is what is allocated, its search finds what fits, and what it refuses it names."""

from pathlib import Path

import pytest
import torch

from loreloop.formats.configuration import read_config_file, read_spec, spec_of
from loreloop.formats.load import load_weights
from loreloop.model.families.table import family_of
from loreloop.parallel.footprint import held_weights
from loreloop.parallel.mesh import Mesh, parse_mesh
from loreloop.parallel.shares import share_of
from loreloop.plan.devices import DEVICES, Group, parse_group
from loreloop.plan.memory import memories_of, memory_of
from loreloop.plan.rates import FAST, LIKELY, SLOW
from loreloop.plan.search import layout_of, meshes_of, plan_of, smallest_group, would_fit
from loreloop.plan.times import Machine, Part
from loreloop.plan.wish import Base, Wish, check_wish
from loreloop.protocol.errors import WrongSettings
from tests.model.test_count import KIMI, PUBLISHED
from tests.tiny import make_tiny_model

H200 = DEVICES["H200"]
CPU = torch.device("cpu")


def base_of(config: dict[str, object], *, packed: bool = False) -> Base:
    return Base("it", spec_of(config, "it"), family_of(config).names, packed)


K2 = base_of(KIMI, packed=True)
QWEN_8B = base_of(PUBLISHED["Qwen3-8B"][0])


@pytest.mark.parametrize("mesh", ["tp=1", "tp=2", "ep=2", "pp=2", "pp=2,tp=2", "ep=2,tp=2"])
@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3"])
def test_weights_take_what_is_counted(family: str, mesh: str, tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path, family)
    spec, names = read_spec(folder), family_of(read_config_file(folder / "config.json")).names
    for rank in range(parse_mesh(mesh).n_ranks):
        share = share_of(spec, parse_mesh(mesh), rank)
        _, weights = load_weights(folder, dtype=torch.bfloat16, device=CPU, held=lambda _, share=share: share.weight)
        held = held_weights(share, names, "none")
        allocated = sum(weight.numel() * weight.element_size() for weight in weights.values())  # type: ignore[union-attr]
        assert held.experts + held.others == allocated
        assert held.n_numbers == sum(weight.shape.numel() for weight in weights.values())


@pytest.mark.parametrize("mesh", ["pp=8", "pp=4,tp=2", "pp=2,ep=4", "ep=8", "pp=16,ep=4"])
@pytest.mark.parametrize("base", [K2, QWEN_8B], ids=["kimi", "qwen"])
def test_no_rank_holds_more_than_those_that_are_looked_at(base: Base, mesh: str) -> None:
    laid_out = parse_mesh(mesh)
    if laid_out.ep > 1 and base.spec.moe is None:
        return
    found = memory_of(base, Wish(), laid_out, H200.n_bytes)
    assert max(memory_of_rank(base, laid_out, rank) for rank in range(laid_out.n_ranks)) == found.total


def test_of_stages_that_differ_the_fullest_and_the_slowest_count() -> None:
    """Such as of 80 layers over 16 stages, where neither of the first two has most."""
    config = PUBLISHED["Qwen3-8B"][0] | {"num_hidden_layers": 80, "hidden_size": 8192, "num_attention_heads": 64}
    base, mesh = base_of(config | {"intermediate_size": 28672}), parse_mesh("pp=16")
    memories = memories_of(base, Wish(), mesh, H200.n_bytes)
    found = layout_of(base, Wish(), Group(H200, 16), mesh)
    assert found.memory.rank == 5
    assert found.memory.total == max(each.total for each in memories) > max(each.total for each in memories[:5])
    assert found.step is not None
    slow = [
        Machine(base.spec, mesh, H200, each, found.memory.running).training(Wish()).seconds(LIKELY) for each in memories
    ]
    assert found.step.training.seconds(LIKELY) == max(slow) > max(slow[:5])


def memory_of_rank(base: Base, mesh: Mesh, rank: int) -> float:
    from loreloop.plan.memory import _rank

    return _rank(base, Wish(), mesh, rank, H200.n_bytes).total


def test_kimi_fits_eight_for_an_adapter_and_hundreds_in_full() -> None:
    assert plan_of(K2, Wish(), Group(H200, 8)).fitting
    lora, full = (smallest_group(K2, Wish(full=full), H200) for full in (False, True))
    assert lora
    assert full
    assert (lora.mesh.n_ranks, full.mesh.n_ranks) == (8, 256)
    assert not plan_of(K2, Wish(), Group(H200, 4)).fitting


def test_the_best_comes_first_and_the_rest_have_a_reason() -> None:
    plan = plan_of(K2, Wish(context=8192, response=4096), Group(H200, 8))
    seconds = [layout.step.seconds(LIKELY) for layout in plan.fitting if layout.step]
    assert seconds == sorted(seconds)
    assert all(layout.memory.spare < 0 and layout.step is None for layout in plan.too_large)
    assert not plan.undivided
    odd = plan_of(QWEN_8B, Wish(), Group(H200, 6))
    assert all("does not divide" in why for _, why in odd.undivided)
    assert odd.undivided


def test_the_band_holds_the_likely_time() -> None:
    for layout in plan_of(K2, Wish(), Group(H200, 8)).fitting:
        assert layout.step
        assert layout.step.seconds(FAST) < layout.step.seconds(LIKELY) < layout.step.seconds(SLOW)


def test_what_would_fit_does() -> None:
    wish, group = Wish(context=32768, rows=32768), Group(DEVICES["A100"], 1)
    base = base_of(PUBLISHED["Qwen3-30B-A3B"][0])
    assert not plan_of(base, wish, group).fitting
    words = would_fit(base, wish, group)
    assert any(each.startswith("--precision int4") for each in words)
    assert plan_of(base, Wish(context=32768, rows=32768, precision="int4"), group).fitting
    (larger,) = (each for each in words if each.startswith("--gpus"))
    assert plan_of(base, wish, parse_group(larger.split()[1])).fitting


def test_a_part_takes_the_slower_of_products_and_memory_and_all_that_is_said() -> None:
    part = Part(products=0.4, memory=1.3, links=0.6, layers=100, messages=50)
    assert part.seconds(LIKELY) == pytest.approx(2.0 + 1.0 + 100 * 1.5e-4 + 50 * 2e-5)
    assert part.bound(LIKELY) == "memory"
    assert part.times(2).plus(part).seconds(LIKELY) == pytest.approx(3 * part.seconds(LIKELY))


def test_a_dense_step_by_hand() -> None:
    """Qwen3-8B on one H200: products of a training pass are six operations a weight and row, a third of them twice."""
    wish = Wish(context=2, response=1, batch=4096, group=1, rows=8192)
    memory = memory_of(QWEN_8B, wish, Mesh(), H200.n_bytes)
    found = Machine(QWEN_8B.spec, Mesh(), H200, memory, memory.running).training(wish)
    products = 36 * (4096 * 6144 + 4096 * 4096 + 3 * 4096 * 12288) + 151936 * 4096
    adapter = 32 * (1_769_472 + 958_464 + 156_032)
    assert found.products == pytest.approx((6 * products + 6 * adapter) * 8192 / 989e12, rel=0.01)
    assert found.links == 0


def test_meshes_stay_inside_a_node_where_they_say_most() -> None:
    found = [*meshes_of(Group(H200, 64), has_experts=True)]
    assert all(mesh.tp <= 8 and mesh.pp <= 16 and 64 % mesh.n_ranks == 0 for mesh in found)
    assert len({str(mesh) for mesh in found}) == len(found)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("8xH20", "did you mean H200"),
        ("8xTPU", "Known are"),
        ("x", "Known are"),
        ("0xH200", "0 devices"),
        ("8 H", "none"),
    ],
)
def test_groups_that_are_none_are_refused(text: str, said: str) -> None:
    with pytest.raises(WrongSettings, match=said):
        parse_group(text)


@pytest.mark.parametrize("text", ["8xH200", "8×h200", "8 x H200"])
def test_groups_are_read(text: str) -> None:
    assert str(parse_group(text)) == "8xH200"


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        (Wish(response=4096), "--response 4096 leaves nothing"),
        (Wish(context=1 << 20), "--context 1048576 is more"),
        (Wish(rank=10_000), "--rank 10000"),
    ],
)
def test_wishes_that_cannot_be_are_refused(wish: Wish, said: str) -> None:
    with pytest.raises(WrongSettings, match=said):
        check_wish(QWEN_8B, wish)

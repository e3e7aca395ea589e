"""Adapters side by side in one product against a product for each."""

import itertools

import pytest
import torch

from loreloop.model.linear import BaseLinear, FastProducts
from loreloop.model.lora import AdapterView, LoraBatch, LoraGroup, LoraLayout
from loreloop.model.lora_stack import KEPT_RANKS, StackCache, StackedLora
from loreloop.protocol.training import LoraSpec
from tests.model.test_lora import SPEC

SITES = ("qkv", "o", "gate_up", "down")


def adapter(rank, seed, dtype=torch.float32, **targets):
    layout = LoraLayout(SPEC, LoraSpec(rank, 0, **targets))
    flat = 0.1 * torch.randn(layout.size, generator=torch.Generator().manual_seed(seed))
    return AdapterView(layout, flat.to(dtype))


def base_of(site, dtype=torch.float32, *, pack=False):
    shape = LoraLayout(SPEC, LoraSpec(1, 0)).places[0, site].shape
    d_out = sum(part.d_out for part in shape.parts)
    weight_OI = torch.randn(d_out, shape.d_in, generator=torch.Generator().manual_seed(7)).to(dtype)
    return BaseLinear(weight_OI, None, FastProducts(pack=pack))


def groups_of(*runs):
    """(adapter or None, number of rows) one behind the other."""
    ends = list(itertools.accumulate(n for _, n in runs))
    return [LoraGroup(end - n, end, a) for (a, n), end in zip(runs, ends, strict=True) if a], ends[-1]


FIRST, SECOND, THIRD = adapter(4, 1), adapter(8, 2), adapter(2, 3, train_mlp=False)
CASES = {
    "one": [(FIRST, 5)],
    "one and bare rows": [(None, 2), (FIRST, 3), (None, 1)],
    "three, one without some sites": [(FIRST, 1), (SECOND, 2), (THIRD, 3)],
    "bare rows between": [(FIRST, 1), (None, 2), (SECOND, 1)],
    "too many rows to merge": [(FIRST, 60), (SECOND, 30), (THIRD, 1)],
    "none": [(None, 3)],
}


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_stack_gives_what_a_product_for_each_gives(case, site):
    groups, n_rows = groups_of(*case)
    base = base_of(site)
    x_TI = torch.randn(n_rows, base.d_in, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        stacked = StackedLora(groups, n_rows, StackCache(base.products)).linear(x_TI, base, 1, site)
        torch.testing.assert_close(stacked, LoraBatch(groups).linear(x_TI, base, 1, site), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("site", SITES)
def test_one_adapter_in_bf16_rounds_as_in_training(site, pack):
    view = adapter(8, 1, torch.bfloat16)
    base = base_of(site, torch.bfloat16, pack=pack)
    x_TI = torch.randn(6, base.d_in, generator=torch.Generator().manual_seed(9)).bfloat16()
    groups, n_rows = groups_of((view, 6))
    with torch.no_grad():
        stacked = StackedLora(groups, n_rows, StackCache(base.products)).linear(x_TI, base, 0, site)
    assert torch.equal(stacked, LoraBatch(groups).linear(x_TI, base, 0, site))


@pytest.mark.parametrize("rank", [1, 3, 5, 7, 12, 24, 33, 48])
@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("site", SITES)
def test_any_rank_in_bf16_rounds_as_in_training_beside_others(site, pack, rank):
    first, second = (adapter(r, seed, torch.bfloat16) for seed, r in enumerate((5, rank)))
    base = base_of(site, torch.bfloat16, pack=pack)
    x_TI = torch.randn(9, base.d_in, generator=torch.Generator().manual_seed(9)).bfloat16()
    with torch.no_grad():
        for runs in ([(second, 9)], [(first, 4), (second, 5)]):
            groups, n_rows = groups_of(*runs)
            stacked = StackedLora(groups, n_rows, StackCache(base.products)).linear(x_TI, base, 0, site)
            assert torch.equal(stacked, LoraBatch(groups).linear(x_TI, base, 0, site))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_weights_beyond_measure_touch_their_own_rows_only(value):
    wild = AdapterView(FIRST.layout, torch.full_like(FIRST.flat, value))
    groups, n_rows = groups_of((SECOND, 2), (wild, 1), (THIRD, 2))
    base = base_of("qkv")
    x_TI = torch.randn(n_rows, base.d_in, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        stacked = StackedLora(groups, n_rows, StackCache(base.products)).linear(x_TI, base, 0, "qkv")
        expected = LoraBatch(groups).linear(x_TI, base, 0, "qkv")
    others = [0, 1, 3, 4]
    torch.testing.assert_close(stacked[others], expected[others], rtol=1e-5, atol=1e-5)


def test_stacks_are_kept_while_they_serve_and_bounded():
    cache = StackCache(FastProducts())
    views = [adapter(64, seed) for seed in range(12)]
    both = cache.get(views[:3])
    assert cache.get(views[1:3]) is both  # one adapter's rows have ended
    assert cache.get(views[2:3]) is not both  # two columns of three would be multiplied in vain
    for view in views:
        cache.get([view])
        assert sum(stack.rank for stack in cache.stacks) <= KEPT_RANKS
    assert both not in cache.stacks

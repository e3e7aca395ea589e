"""Frozen products: what they compute, and that a tiled row is the same bits in any company."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loreloop.model.linear import BaseLinear, FastProducts, TiledProducts

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
BASE_SHAPES = [(576, 960), (64, 100), (100, 64)]  # (inputs, outputs)
ADAPTER_SHAPES = [(576, 1), (576, 3), (576, 33), (1, 192), (5, 64), (33, 192)]  # A's and B's of ranks 1, 5, 11 and 33


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("products", [FastProducts(), TiledProducts(), TiledProducts(8)])
@pytest.mark.parametrize("n_rows", [0, 1, 5, 32, 70])
def test_forward_and_input_gradient_are_the_plain_formula(products, n_rows):
    weight, bias, x, dy = random(9, 6), random(9), random(n_rows, 6, seed=1), random(n_rows, 9, seed=2)
    linear = BaseLinear(weight, bias, products)
    torch.testing.assert_close(linear.forward(x), torch.einsum("ti,oi->to", x, weight) + bias)
    torch.testing.assert_close(linear.input_grad(dy), torch.einsum("to,oi->ti", dy, weight))


@pytest.mark.parametrize("shape", BASE_SHAPES)
def test_packed_weights_give_the_same_bits(shape, threads):
    d_in, d_out = shape
    weight, bias = random(d_out, d_in, dtype=torch.bfloat16), random(d_out, dtype=torch.bfloat16, seed=1)
    plain, packed = (BaseLinear(weight, bias, FastProducts(pack=pack)) for pack in (False, True))
    for n_rows in (1, 3, 32, 200, 700):
        x = random(n_rows, d_in, dtype=torch.bfloat16, seed=n_rows)
        assert torch.equal(plain.forward(x), packed.forward(x))


@DTYPES
@pytest.mark.parametrize("shape", BASE_SHAPES + ADAPTER_SHAPES)
def test_a_tiled_row_is_the_same_bits_at_any_place_in_a_batch_of_any_size(shape, dtype, threads):
    d_in, d_out = shape
    products, row = TiledProducts(), random(1, d_in, dtype=dtype)
    weight, bias = random(d_out, d_in, dtype=dtype, seed=1), random(d_out, dtype=dtype, seed=2)
    alone = products.linear(row, weight, bias)[0]
    for n_rows in (2, 31, 32, 33, 100):
        for place in (0, n_rows // 2, n_rows - 1):
            x = random(n_rows, d_in, dtype=dtype, seed=n_rows)
            x[place] = row
            assert torch.equal(products.linear(x, weight, bias)[place], alone)


@DTYPES
@pytest.mark.parametrize("shape", BASE_SHAPES)
def test_a_tiled_input_gradient_is_the_same_bits_too(shape, dtype, threads):
    d_in, d_out = shape
    products, row = TiledProducts(), random(1, d_out, dtype=dtype)
    weight = random(d_out, d_in, dtype=dtype, seed=1)
    alone = products.matmul(row, weight)[0]
    for n_rows, place in [(2, 1), (32, 31), (33, 32), (100, 50)]:
        dy = random(n_rows, d_out, dtype=dtype, seed=n_rows)
        dy[place] = row
        assert torch.equal(products.matmul(dy, weight)[place], alone)


@DTYPES
def test_the_layout_in_memory_changes_no_bit(dtype, threads):
    """Columns of a fused product are views with a stride of their own."""
    products, wide, weight = TiledProducts(), random(40, 200, dtype=dtype), random(30, 64, dtype=dtype, seed=1)
    view = wide[:, 17:81]
    assert torch.equal(products.linear(view, weight), products.linear(view.contiguous(), weight))


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 80), max_size=4), d_in=st.sampled_from([4, 24, 100, 576]))
def test_splitting_a_batch_anywhere_changes_no_bit(cuts, d_in):
    products, x, weight = TiledProducts(), random(80, d_in), random(17, d_in, seed=1)
    edges = sorted({0, 80, *cuts})
    parts = [products.linear(x[a:b], weight) for a, b in pairwise(edges)]
    assert torch.equal(torch.cat(parts), products.linear(x, weight))

"""Our own products of bf16 rows against the plain formula, and a row's bits in any company."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loreloop.kernels import bf16_products
from loreloop.model.linear import BaseLinear, FastProducts, PlainLowRank

BF16 = torch.bfloat16
SHAPES = [(960, 576), (576, 1536), (96, 576), (576, 32), (20, 33), (5, 7), (1, 1), (33, 2)]  # (outputs, inputs)
pytestmark = pytest.mark.skipif(
    not bf16_products.supports(torch.empty(0, dtype=BF16)), reason="a processor without the kernels"
)


def numbers(*shape, seed=0, dtype=BF16):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def plain(x_TI, weight_OI):
    return x_TI.float() @ weight_OI.float().T


def assert_near(result, expected_fp32):
    torch.testing.assert_close(result.float(), expected_fp32, rtol=2**-7, atol=1e-2)


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n_rows", [0, 1, 2, 3, 5, 13, 32, 530, 1100])
def test_the_plain_formula(shape, n_rows, threads):
    weight_OI, x_TI, bias_O = numbers(*shape), numbers(n_rows, shape[1], seed=1), numbers(shape[0], seed=2).float()
    y_TO = numbers(n_rows, shape[0], seed=3)
    laid_out = bf16_products.laid_out(weight_OI)
    assert_near(bf16_products.product(x_TI, laid_out), plain(x_TI, weight_OI))
    assert_near(bf16_products.product(x_TI, laid_out, bias_O), plain(x_TI, weight_OI) + bias_O)
    sum_TO = y_TO.clone()
    bf16_products.add_product(sum_TO, x_TI, laid_out)
    assert_near(sum_TO, y_TO.float() + plain(x_TI, weight_OI))


@pytest.mark.parametrize("shape", SHAPES)
def test_laid_out_or_not_gives_the_same_bits(shape, threads):
    weight_OI, x_TI, y_TO = numbers(*shape), numbers(40, shape[1], seed=1), numbers(40, shape[0], seed=2)
    laid_out = bf16_products.laid_out(weight_OI)
    assert torch.equal(bf16_products.product(x_TI, weight_OI), bf16_products.product(x_TI, laid_out))
    sums = y_TO.clone(), y_TO.clone()
    for sum_TO, weight in zip(sums, (weight_OI, laid_out), strict=True):
        bf16_products.add_product(sum_TO, x_TI, weight)
    assert torch.equal(*sums)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n_rows", [0, 1, 5, 40])
def test_turned_weights_give_the_bits_of_their_transposes(shape, n_rows, threads):
    weight_OI, x_TO = numbers(*shape), numbers(n_rows, shape[0], seed=1)
    y_TI = bf16_products.turned_product(x_TO, weight_OI)
    assert_near(y_TI, x_TO.float() @ weight_OI.float())
    assert torch.equal(y_TI, bf16_products.product(x_TO, weight_OI.T.contiguous()))
    wide_OI = numbers(shape[0], shape[1] + 9, seed=2)
    assert torch.equal(
        bf16_products.turned_product(x_TO, wide_OI[:, 3:-6]),
        bf16_products.turned_product(x_TO, wide_OI[:, 3:-6].clone()),
    )


@settings(max_examples=60, deadline=None)
@given(n_rows=st.integers(1, 60), place=st.integers(0, 59), shape=st.sampled_from(SHAPES), n_threads=st.integers(1, 3))
def test_a_row_has_the_same_bits_in_any_company(n_rows, place, shape, n_threads):
    before, place = torch.get_num_threads(), place % n_rows
    weight_OI, x_TI = numbers(*shape), numbers(n_rows, shape[1], seed=n_rows)
    alone = bf16_products.product(x_TI[place : place + 1], weight_OI)
    torch.set_num_threads(n_threads)
    together = bf16_products.product(x_TI, bf16_products.laid_out(weight_OI))
    torch.set_num_threads(before)
    assert torch.equal(together[place : place + 1], alone)


def test_columns_of_wider_rows():
    """Parts of a fused product are views; what stands beside them stays as it is."""
    wide_TI, weight_OI, y_TO = numbers(9, 100), numbers(30, 33, seed=1), numbers(9, 50, seed=2)
    before = y_TO.clone()
    bf16_products.add_product(y_TO[:, 7:37], wide_TI[:, 11:44], weight_OI)
    assert_near(y_TO[:, 7:37], before[:, 7:37].float() + plain(wide_TI[:, 11:44], weight_OI))
    assert torch.equal(y_TO[:, :7], before[:, :7])
    assert torch.equal(y_TO[:, 37:], before[:, 37:])
    turned_IO = numbers(33, 30, seed=1)
    assert torch.equal(
        bf16_products.product(wide_TI[:, 11:44], turned_IO.T),
        bf16_products.product(wide_TI[:, 11:44], turned_IO.T.contiguous()),
    )
    assert torch.equal(
        bf16_products.product(wide_TI[:1].expand(4, -1), numbers(3, 100)),
        bf16_products.product(wide_TI[:1].repeat(4, 1), numbers(3, 100)),
    )


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("n_rows", [1, 3, 32, 70])
def test_a_site_at_once_is_its_three_products(n_rows, pack, masked, threads):
    weight_OI, bias_O, x_TI = numbers(960, 576), numbers(960, seed=1), numbers(n_rows, 576, seed=2)
    a_RI, b_OR = 0.1 * numbers(48, 576, seed=3), 0.1 * numbers(960, 48, seed=4)
    mask_TR = (numbers(n_rows, 48, seed=5) > 0).to(BF16) if masked else None
    products = FastProducts(pack=pack)
    base = BaseLinear(weight_OI, bias_O, products)
    y_TO = products.low_rank(a_RI, b_OR).beside(base, x_TI, mask_TR)
    h_TR = products.linear(x_TI, a_RI)
    expected_TO = products.linear(x_TI, weight_OI, bias_O)
    products.add_linear(expected_TO, h_TR if mask_TR is None else h_TR * mask_TR, b_OR)
    assert torch.equal(y_TO, expected_TO)
    assert torch.equal(y_TO, products.low_rank(a_RI, b_OR).add(base.forward(x_TI), x_TI, mask_TR))
    by_the_library = PlainLowRank(lambda x: x @ a_RI.T, lambda h, y: torch.addmm(y, h, b_OR.T))
    torch.testing.assert_close(y_TO, by_the_library.beside(base, x_TI, mask_TR), rtol=2**-6, atol=2**-6)


def test_masked_ranks_add_nothing_even_if_they_are_infinite():
    x_TI, a_RI, b_OR = numbers(2, 16), numbers(32, 16, seed=1), numbers(16, 32, seed=2)
    a_RI[16:] = float("inf")
    mask_TR = torch.cat((torch.ones(2, 16), torch.zeros(2, 16)), 1).to(BF16)
    base = BaseLinear(numbers(16, 16, seed=3), None, FastProducts(pack=True))
    y_TO = base.products.low_rank(a_RI, b_OR).beside(base, x_TI, mask_TR)
    assert torch.equal(y_TO, base.products.low_rank(a_RI[:16], b_OR[:, :16]).beside(base, x_TI, None))


def test_what_is_no_number_stays_in_its_row():
    x_TI, weight_OI = numbers(3, 20), numbers(18, 20, seed=1)
    x_TI[1, 4] = float("nan")
    y_TO = bf16_products.product(x_TI, weight_OI)
    assert y_TO[1].isnan().all()
    assert y_TO[[0, 2]].isfinite().all()


def test_without_inputs_there_is_nothing_but_the_bias(threads):
    x_TI, weight_OI, bias_O = numbers(3, 0), numbers(20, 0), numbers(20).float()
    for weight in (weight_OI, bf16_products.laid_out(weight_OI)):
        assert torch.equal(bf16_products.product(x_TI, weight, bias_O), bias_O.bfloat16().expand(3, -1))


def test_other_dtypes_are_not_read_as_bf16():
    x_TI, weight_OI = numbers(3, 16), numbers(16, 16)
    panels = bf16_products.laid_out(weight_OI)
    calls = [
        lambda: bf16_products.product(x_TI.float(), weight_OI),
        lambda: bf16_products.product(x_TI, weight_OI.float()),
        lambda: bf16_products.add_product(torch.zeros(3, 16), x_TI, weight_OI),
        lambda: bf16_products.turned_product(x_TI, weight_OI.float()),
        lambda: bf16_products.turned_product(x_TI.float(), weight_OI),
        lambda: bf16_products.site(x_TI.float(), panels, None, panels, panels, None),
        lambda: bf16_products.site(x_TI, panels, None, panels, panels, torch.ones(3, 16)),
    ]
    for call in calls:
        with pytest.raises(AssertionError, match="float32"):
            call()

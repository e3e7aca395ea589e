"""Packed weights: values, rows, views and products against plain ones."""

import pytest
import torch
from torch.nn import functional as F

from loreloop.kernels import packed_products as kernels
from loreloop.model.packed_weights import PackedWeight

BF16 = torch.bfloat16
SHAPES = [(16, 32), (48, 96), (112, 64), (512, 288)]


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def filled(shape, bits, *, offsets=False, scale_dtype=torch.float16, seed=0):
    """A packed weight of random codes, and its values by the formula."""
    d_out, d_in = shape
    draw = torch.Generator().manual_seed(seed)
    low, high, dtype = (0, 16, torch.uint8) if bits == 4 else (-128, 128, torch.int8)
    code_OI = torch.randint(low, high, shape, generator=draw).to(dtype)
    scale_OG = (torch.rand(d_out, d_in // 32, generator=draw) / 64).to(scale_dtype)
    offset_OG = (-torch.rand(d_out, d_in // 32, generator=draw) / 8).to(scale_dtype) if offsets else None
    weight = PackedWeight.empty(shape, bits, scale_dtype, offsets=offsets)
    weight.fill(code_OI, scale_OG, offset_OG)
    base = code_OI.float() - (8 if bits == 4 and not offsets else 0)
    values = base * scale_OG.float().repeat_interleave(32, 1)
    if offset_OG is not None:
        values = values + offset_OG.float().repeat_interleave(32, 1)
    return weight, values.to(BF16)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("bits", "offsets"), [(4, False), (4, True), (8, False)])
@pytest.mark.parametrize("scale_dtype", [torch.float16, BF16])
def test_values_are_the_formulas(shape, bits, offsets, scale_dtype):
    weight, values_OI = filled(shape, bits, offsets=offsets, scale_dtype=scale_dtype)
    assert torch.equal(weight.dense(), values_OI)
    assert torch.equal(weight._dense_by_steps(), values_OI)
    rows_N = torch.tensor([0, shape[0] - 1, 7, 7, 8])
    assert torch.equal(weight.rows(rows_N), values_OI[rows_N])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("n_rows", [0, 1, 2, 3, 4, 5, 12, 31, 64])
def test_products_are_right_to_rounding(shape, bits, n_rows):
    weight, values_OI = filled(shape, bits)
    x_TI, bias_O = numbers(n_rows, shape[1]).to(BF16), numbers(shape[0]).to(BF16)
    exact_TO = x_TI.double() @ values_OI.double().T
    y_TO = weight.product(None)(x_TI)
    assert y_TO.dtype == BF16
    torch.testing.assert_close(y_TO.double(), exact_TO, rtol=2**-8, atol=1e-4)
    torch.testing.assert_close(weight.product(bias_O)(x_TI), y_TO + bias_O, rtol=0, atol=0)
    torch.testing.assert_close(weight.product(None)(x_TI.float()), F.linear(x_TI.float(), values_OI.float()))


@pytest.mark.skipif(not kernels.supports(torch.empty(0, dtype=BF16)), reason="no kernels for this processor")
@pytest.mark.parametrize("bits", [4, 8])
def test_a_row_does_not_depend_on_the_rows_beside_it(bits):
    weight, _ = filled((256, 576), bits)
    x_TI = numbers(97, 576).to(BF16)
    product = weight.product(None)
    together_TO = product(x_TI)
    assert all(torch.equal(product(x_TI[t : t + 1])[0], together_TO[t]) for t in range(97))
    assert torch.equal(product(x_TI[5:18]), together_TO[5:18])


@pytest.mark.parametrize("bits", [4, 8])
def test_rounding_to_codes_errs_by_half_a_step(bits):
    values_OI = numbers(32, 128)
    values_OI[3, 32:64] = 0
    weight = PackedWeight.empty((32, 128), bits, BF16, offsets=False)
    weight.copy_(values_OI)
    step = values_OI.view(32, 4, 32).abs().amax(-1) / (7 if bits == 4 else 127)
    error = (weight.dense().float() - values_OI).abs().view(32, 4, 32).amax(-1)
    assert bool((error <= 0.5 * step * 1.02 + 2**-8 * values_OI.abs().max()).all())
    assert not weight.dense()[3, 32:64].any()


def test_views_are_filled_in_place():
    parts = [filled((16 * n, 64), 4, seed=n) for n in (1, 3, 2)]
    whole = PackedWeight.empty((96, 64), 4, torch.float16, offsets=False)
    start = 0
    for part, _ in parts:
        whole[start : start + part.shape[0]].copy_(part.dense())
        start += part.shape[0]
    assert whole[16:64].shape == (48, 64)
    assert torch.equal(whole[16:64].dense(), whole.dense()[16:64])


def test_four_bits_take_less_than_a_third_of_bf16():
    weight = PackedWeight.empty((512, 576), 4, BF16, offsets=False)
    assert weight.n_bytes <= 0.30 * 512 * 576 * 2

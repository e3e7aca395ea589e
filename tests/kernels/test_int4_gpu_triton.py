"""Products of many 4-bit weights in one launch: on a GPU, or in Triton's interpreter in a process of its own."""

import importlib
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loreloop.kernels.int4_gpu import BACKWARD, FORWARD, Int4GpuGroup, Int4GpuWeight
from tests.interpreted import DEVICE, run_in_the_interpreter, runs_here

triton = pytest.importorskip("triton")

BF16, HALF = torch.bfloat16, torch.float16
FORMS = [(False, BF16), (False, HALF), (True, HALF), (True, BF16)]
ROWS = [3, 0, 17, 1, 0]


def test_all_of_these_in_the_interpreter():
    run_in_the_interpreter(__file__)


def filled(shape, *, offsets=False, dtype=BF16, seed=0):
    """A weight of random codes, and its values by the formula."""
    draw = torch.Generator().manual_seed(seed)
    code_OI = torch.randint(0, 16, shape, generator=draw).to(torch.uint8)
    scale_OG = (torch.rand(shape[0], shape[1] // 32, generator=draw) / 64).to(dtype)
    offset_OG = (-torch.rand(shape[0], shape[1] // 32, generator=draw) / 8).to(dtype) if offsets else None
    weight = Int4GpuWeight.empty(shape, dtype, DEVICE, offsets=offsets)
    weight.fill(code_OI, scale_OG, offset_OG)
    values_OI = (code_OI.float() - (0 if offsets else 8)) * scale_OG.float().repeat_interleave(32, 1)
    if offset_OG is not None:
        values_OI += offset_OG.float().repeat_interleave(32, 1)
    return weight, values_OI.to(BF16).to(DEVICE)


def many(shape, n, **form):
    weights, values = zip(*[filled(shape, seed=seed, **form) for seed in range(n)], strict=True)
    return Int4GpuGroup(weights), values


def starts_of(rows):
    return torch.tensor([0, *rows], device=DEVICE).cumsum(0)


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(BF16).to(DEVICE)


def assert_products(group, values, rows, **tile):
    """Both directions against sums in double, weight by weight."""
    d_out, d_in = values[0].shape
    starts_E1, x_NI, dy_NO = starts_of(rows), numbers(sum(rows), d_in), numbers(sum(rows), d_out, seed=1)
    y_NO, dx_NI = group.product(x_NI, starts_E1, **tile), group.input_grad(dy_NO, starts_E1, **tile)
    assert (y_NO.dtype, dx_NI.dtype) == (BF16, BF16)
    of_weights = zip(values, *(t.split(rows) for t in (x_NI, y_NO, dy_NO, dx_NI)), strict=True)
    for w_OI, x, y, dy, dx in of_weights:
        torch.testing.assert_close(y.double(), x.double() @ w_OI.double().T, rtol=2**-8, atol=1e-4)
        torch.testing.assert_close(dx.double(), dy.double() @ w_OI.double(), rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize("shape", [(16, 32), (48, 96), (32, 128), (80, 288)])
@pytest.mark.parametrize(("offsets", "dtype"), FORMS)
def test_sheets_give_back_what_filled_them(shape, offsets, dtype):
    weight, _ = filled(shape, offsets=offsets, dtype=dtype)
    again = Int4GpuWeight.empty(shape, dtype, DEVICE, offsets=offsets)
    again[0:16].fill(*weight[0:16].plain())
    again[16:].fill(*weight[16:].plain())
    assert torch.equal(again.codes, weight.codes)
    assert torch.equal(again.scales, weight.scales)


@runs_here
@pytest.mark.parametrize("shape", [(48, 96), (272, 160), (144, 256)])
@pytest.mark.parametrize(("offsets", "dtype"), FORMS)
def test_products_are_right_to_rounding(shape, offsets, dtype):
    assert_products(*many(shape, len(ROWS), offsets=offsets, dtype=dtype), ROWS)


@runs_here
@pytest.mark.parametrize("tiles", [FORWARD, BACKWARD], ids=["forward", "backward"])
def test_all_tiles_are_right(tiles):
    group, values = many((48, 96), len(ROWS))
    for tile in tiles.values():
        assert_products(group, values, ROWS, tile=tile)


@runs_here
@pytest.mark.parametrize(("offsets", "dtype"), FORMS)
def test_the_values_are_the_formula_s_to_the_last_bit(offsets, dtype):
    group, (w_OI,) = many((48, 160), 1, offsets=offsets, dtype=dtype)
    one_II, one_OO = (torch.eye(n, dtype=BF16, device=DEVICE) for n in (160, 48))
    assert torch.equal(group.product(one_II, starts_of([160])), w_OI.T)
    assert torch.equal(group.input_grad(one_OO, starts_of([48])), w_OI)


@runs_here
@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=9))
def test_any_rows_meet_their_weight(rows):
    assert_products(*many((32, 64), len(rows)), rows)


@runs_here
def test_the_sum_over_weights_is_the_dense_product():
    """Weights cut along their inputs: their products add up to the product of the whole."""
    whole, w_OI = filled((48, 384))
    codes, scales, _ = whole.plain()
    parts = []
    for code_OI, scale_OG in zip(codes.split(96, 1), scales.split(3, 1), strict=True):
        parts.append(Int4GpuWeight.empty((48, 96), BF16, DEVICE, offsets=False))
        parts[-1].fill(code_OI, scale_OG, None)
    x_TI = numbers(5, 384)
    y_NO = Int4GpuGroup(parts).product(torch.cat(x_TI.split(96, 1)), starts_of([5] * 4))
    exact_TO = x_TI.double() @ w_OI.double().T
    torch.testing.assert_close(y_NO.unflatten(0, (4, 5)).double().sum(0), exact_TO, rtol=2**-7, atol=2**-8)


@runs_here
def test_rows_alone_and_among_others_are_equal():
    weights, _ = zip(*[filled((48, 96), seed=seed) for seed in range(2)], strict=True)
    group = Int4GpuGroup(weights, exact=True)
    x_NI = numbers(70, 96)
    together_NO = group.product(x_NI, starts_of([40, 30]))
    assert torch.equal(group.product(x_NI[41:42], starts_of([0, 1])), together_NO[41:42])


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="nothing is compiled there")
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("kernel", ["forward", "backward"])
def test_compilers_take_the_kernels_without_a_gpu(kernel, capability, tmp_path, monkeypatch):
    """What the interpreter does not see: the products in bf16, and how much a tile needs."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    function = getattr(importlib.import_module("loreloop.kernels.int4_gpu_triton"), kernel)
    tile = (FORWARD if kernel == "forward" else BACKWARD)[1 << 62]
    constants = {"n_e": 64, "n_r": tile.rows, "OFFSETS": False, "HALF": False, "PLAIN": False}
    constants |= {"n_o": tile.d_out, "WHOLE": True} if kernel == "forward" else {"n_b": tile.d_out // 128, "n_o": 64}
    types = {"starts": "*i32", "words": "*i32", "scales": "*i64", "offsets": "*i64", "places": "*i64"}
    types |= dict.fromkeys(("x", "y", "dy", "dx"), "*bf16") | dict.fromkeys(("n_experts", "d_out", "d_in"), "i32")
    names = function.arg_names
    signature = {name: types.get(name, "constexpr") for name in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name in types and name != "n_experts"}
    source = triton.compiler.ASTSource(
        function, signature, {(names.index(name),): value for name, value in constants.items()}, aligned
    )
    options = {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": False}
    compiled = triton.compile(
        source, target=triton.backends.compiler.GPUTarget("cuda", capability, 32), options=options
    )
    assert compiled.metadata.shared <= 160 * 1024
    assert ("wgmma" if capability == 90 else "mma.sync") in compiled.asm["ptx"]

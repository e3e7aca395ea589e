"""A model whose 4-bit weights lie in sheets, as on a GPU: a layer's experts in one product, there and back."""

import os

import pytest
import torch

from loreloop.formats.load import load_decoder
from loreloop.kernels.int4_gpu import Int4GpuWeight
from loreloop.model.expert_products import Expert, ExpertProducts, experts_sum
from loreloop.model.linear import BaseLinear, FastProducts, TiledProducts
from loreloop.model.lora import NO_ADAPTERS
from loreloop.model.packed_weights import PackedWeight
from tests.engine.train_rig import CPU, Rig, datum, relative_error, train_pass
from tests.interpreted import DEVICE, run_in_the_interpreter, runs_here
from tests.model.plain import tokens
from tests.tiny import make_tiny_model

BF16 = torch.bfloat16
in_the_interpreter = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="runs in the interpreter")


def test_all_of_these_in_the_interpreter():
    run_in_the_interpreter(__file__)


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def packed(shape, seed=0):
    weight = PackedWeight.empty(shape, 4, BF16, DEVICE)
    weight.copy_(numbers(*shape, seed=seed) / 8)
    return weight


@runs_here
def test_a_weight_in_sheets_is_the_one_in_tiles(monkeypatch):
    weight = packed((96, 160))
    assert isinstance(weight.codes, Int4GpuWeight)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    tiles = PackedWeight.empty((96, 160), 4, BF16)
    tiles.copy_(numbers(96, 160) / 8)
    assert torch.equal(weight.dense().cpu(), tiles.dense())
    assert torch.equal(weight[16:48].dense().cpu(), tiles[16:48].dense())
    index_N = torch.tensor([3, 95, 3])
    assert torch.equal(weight.rows(index_N.to(DEVICE)).cpu(), tiles.rows(index_N))


@runs_here
@pytest.mark.parametrize("products", [FastProducts(), TiledProducts()], ids=["fast", "exact"])
def test_a_linear_map_of_sheets_is_that_of_their_values(products):
    weight, bias_O = packed((48, 96)), numbers(48).to(BF16)
    own, plain = BaseLinear(weight, bias_O, products), BaseLinear(weight.dense(), bias_O, FastProducts())
    x_TI, dy_TO = numbers(19, 96).to(BF16), numbers(19, 48, seed=1).to(BF16)
    torch.testing.assert_close(own.forward(x_TI), plain.forward(x_TI), rtol=2**-7, atol=2**-7)
    torch.testing.assert_close(own.input_grad(dy_TO), plain.input_grad(dy_TO), rtol=2**-7, atol=2**-7)
    fp32 = BaseLinear(weight, None, products).forward(x_TI.float())
    torch.testing.assert_close(fp32, x_TI.float() @ weight.dense().float().T)


def experts(weights):
    return ExpertProducts([Expert(*(BaseLinear(weight, None, FastProducts()) for weight in pair)) for pair in weights])


def choices(n_tokens, n_experts, top_k, seed=0):
    """Ids (T, K), each token's different and in no order."""
    draw = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(n_experts, generator=draw)[:top_k] for _ in range(n_tokens)]).to(DEVICE)


@runs_here
@pytest.mark.parametrize("n_tokens", [1, 6, 40])
def test_experts_together_are_experts_one_by_one(n_tokens):
    pairs = [(packed((128, 64), seed), packed((64, 64), 100 + seed)) for seed in range(7)]
    layers = [experts(pairs), experts([[weight.dense() for weight in pair] for pair in pairs])]
    x_TD, ids_TK = numbers(n_tokens, 64).to(BF16), choices(n_tokens, 7, 3)
    assert [layer.together(x_TD) for layer in layers] == [True, False]
    assert not layers[0].together(x_TD.float())
    results = []
    for layer in layers:
        x, weight_TK = x_TD.clone().requires_grad_(), numbers(n_tokens, 3, seed=1).softmax(-1).requires_grad_()
        y_TD = experts_sum(x, weight_TK, ids_TK, layer, NO_ADAPTERS, 0)
        y_TD.backward(numbers(n_tokens, 64, seed=2).to(BF16))
        with torch.no_grad():
            assert torch.equal(experts_sum(x, weight_TK, ids_TK, layer, NO_ADAPTERS, 0), y_TD)
        results.append((y_TD.detach(), x.grad, weight_TK.grad))
    for own, plain in zip(*results, strict=True):
        torch.testing.assert_close(own, plain, rtol=2**-6, atol=2**-6 * float(plain.abs().max()))


@in_the_interpreter
@pytest.mark.parametrize("form", ["shared_outer", "per_expert"])
def test_adapters_of_experts_learn_the_same(form, tmp_path, monkeypatch):
    """As near to fp32 as the same packed model is with its experts one by one."""
    folder = make_tiny_model(tmp_path, "deepseek_v3", moe_intermediate_size=64)

    def grad(dtype, *, interpreted=True):
        with monkeypatch.context() as patch:
            if not interpreted:
                patch.delenv("TRITON_INTERPRET")
            rig = Rig(folder, dtype=dtype)
            decoder = load_decoder(folder, dtype=dtype, device=CPU, products=FastProducts(), quantize=True)
            rig.decoder = rig.trainer.decoder = rig.trainer.head.decoder = decoder
            codes = decoder.layers[1].feed_forward.experts[0].down.weight.codes
            assert isinstance(codes, Int4GpuWeight) == interpreted
            return rig.grad(train_pass(datum(tokens(12)), datum(tokens(9, seed=1))), experts=form)

    exact, together, one_by_one = grad(torch.float32), grad(BF16), grad(BF16, interpreted=False)
    assert relative_error(together, one_by_one) < 0.5 * relative_error(one_by_one, exact)
    assert relative_error(together, exact) < 1.2 * relative_error(one_by_one, exact)

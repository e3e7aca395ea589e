"""Adapters: their layout, their start, and their products against the formula written out."""

import math

import pytest
import torch

from loreloop.formats.peft import named_tensors
from loreloop.model.families.llama import Llama
from loreloop.model.linear import BaseLinear, FastProducts, TiledProducts
from loreloop.model.lora import AdapterView, LoraBatch, LoraGroup, LoraLayout, init_flat
from loreloop.protocol.training import LoraSpec
from tests.tiny import LlamaConfig

SPEC = Llama().spec(
    LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    ).to_dict()
)


def layout(rank=2, *, attn=True, mlp=True, unembed=True, seed=0):
    return LoraLayout(SPEC, LoraSpec(rank, seed, train_attn=attn, train_mlp=mlp, train_unembed=unembed))


def random_view(own, seed=0, dtype=torch.float32):
    flat = torch.randn(own.size, generator=torch.Generator().manual_seed(seed))
    return AdapterView(own, flat.to(dtype))


def delta(view, layer, site):
    """ΔW of a whole site: (32 / r) · B · A, part under part."""
    rank = view.layout.rank
    a_parts = view.a(layer, site).split(rank)
    return torch.cat([b @ a for a, b in zip(a_parts, view.b(layer, site), strict=True)]) * (32 / rank)


def base_linear(seed=9, products=None):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(SPEC.d_q + 2 * SPEC.d_kv, SPEC.d_model, generator=generator)
    return BaseLinear(weight, torch.randn(len(weight), generator=generator), products or FastProducts())


@pytest.mark.parametrize(
    ("attn", "mlp", "unembed", "expected"),
    [
        (True, False, False, 3 * 2 * ((16 + 16) + 2 * (16 + 8) + (16 + 16))),
        (False, True, False, 3 * 2 * (2 * (16 + 24) + (24 + 16))),
        (False, False, True, 2 * (16 + 50)),
    ],
)
def test_the_size_counts_rank_times_inputs_and_outputs(attn, mlp, unembed, expected):
    assert layout(2, attn=attn, mlp=mlp, unembed=unembed).size == expected


def test_sizes_of_the_trained_parts_add_up():
    parts = [layout(5, attn=i == 0, mlp=i == 1, unembed=i == 2).size for i in range(3)]
    assert layout(5).size == sum(parts)


def test_the_views_cover_every_number_exactly_once():
    own = layout(3)
    counts = AdapterView(own, torch.zeros(own.size))
    for _, tensor in named_tensors(counts):
        tensor += 1
    assert (counts.flat == 1).all()


def test_a_site_is_there_only_where_it_is_trained():
    own = layout(attn=False, unembed=False)
    assert own.has(0, "down")
    assert not own.has(0, "qkv")
    assert not own.has(SPEC.n_layers, "unembed")


def test_a_fresh_adapter_is_uniform_a_and_zero_b():
    own = layout(64)
    for name, tensor in named_tensors(AdapterView(own, init_flat(own, seed=3))):
        if "lora_B" in name:
            assert not tensor.any()
        else:
            bound = 1 / math.sqrt(tensor.shape[1])
            assert tensor.abs().max() <= bound
            assert tensor.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)


def test_the_seed_decides_the_start():
    own = layout()
    assert torch.equal(init_flat(own, 1), init_flat(own, 1))
    assert not torch.equal(init_flat(own, 1), init_flat(own, 2))


def test_each_group_of_rows_gets_its_own_adapter_and_rows_between_get_none():
    base, x = base_linear(), torch.randn(10, SPEC.d_model, generator=torch.Generator().manual_seed(0))
    first, second = random_view(layout(2), 1), random_view(layout(5), 2)
    y = LoraBatch([LoraGroup(0, 3, first), LoraGroup(6, 10, second)]).linear(x, base, 1, "qkv")
    torch.testing.assert_close(y[:3], base.forward(x[:3]) + x[:3] @ delta(first, 1, "qkv").T)
    torch.testing.assert_close(y[6:], base.forward(x[6:]) + x[6:] @ delta(second, 1, "qkv").T)
    assert torch.equal(y[3:6], base.forward(x)[3:6])


def test_an_adapter_without_the_site_leaves_the_base_alone():
    base, x = base_linear(), torch.randn(4, SPEC.d_model)
    view = random_view(layout(attn=False))
    assert torch.equal(LoraBatch([LoraGroup(0, 4, view)]).linear(x, base, 0, "qkv"), base.forward(x))


@pytest.mark.parametrize("products", [FastProducts(), TiledProducts()])
def test_gradients_equal_autograd_through_the_formula(products):
    base, rows = base_linear(products=products), slice(2, 7)
    view, grad = random_view(layout(3), 1), random_view(layout(3), 2)
    x, dy = torch.randn(9, SPEC.d_model, requires_grad=True), torch.randn(9, base.d_out)
    before = grad.flat.clone()
    LoraBatch([LoraGroup(rows.start, rows.stop, view, grad)]).linear(x, base, 2, "qkv").backward(dy)

    plain_x, plain = x.detach().clone().requires_grad_(), AdapterView(view.layout, view.flat.clone().requires_grad_())
    y = plain_x @ base.weight_OI.T + base.bias_O
    y = torch.cat([y[:2], y[rows] + plain_x[rows] @ delta(plain, 2, "qkv").T, y[7:]])
    y.backward(dy)
    torch.testing.assert_close(x.grad, plain_x.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(grad.flat - before, plain.flat.grad, rtol=1e-4, atol=1e-4)


def test_a_group_that_does_not_train_still_sends_the_input_gradient():
    base, view = base_linear(), random_view(layout(3))
    x, dy = torch.randn(4, SPEC.d_model, requires_grad=True), torch.randn(4, base.d_out)
    LoraBatch([LoraGroup(0, 4, view)]).linear(x, base, 0, "qkv").backward(dy)
    torch.testing.assert_close(x.grad, dy @ (base.weight_OI + delta(view, 0, "qkv")), rtol=1e-4, atol=1e-4)


def test_bf16_products_collect_their_gradient_in_fp32():
    own, base = layout(2), base_linear()
    base = BaseLinear(base.weight_OI.bfloat16(), base.bias_O.bfloat16(), FastProducts())
    view, grad = random_view(own, dtype=torch.bfloat16), AdapterView(own, torch.zeros(own.size))
    x = torch.randn(4, SPEC.d_model).bfloat16().requires_grad_()
    for _ in range(300):  # a bf16 sum would stand still after 256 equal addends
        LoraBatch([LoraGroup(0, 4, view, grad)]).linear(x, base, 0, "qkv").sum().backward()
    once = AdapterView(own, torch.zeros(own.size))
    LoraBatch([LoraGroup(0, 4, view, once)]).linear(x, base, 0, "qkv").sum().backward()
    torch.testing.assert_close(grad.flat, once.flat * 300)


def test_with_tiled_products_an_adapter_s_rows_do_not_depend_on_other_groups():
    base, x = base_linear(products=TiledProducts()), torch.randn(50, SPEC.d_model)
    view, other = random_view(layout(3), 1), random_view(layout(8), 2)
    together = LoraBatch([LoraGroup(0, 13, other), LoraGroup(13, 50, view)]).linear(x, base, 0, "qkv")
    assert torch.equal(together[13:], LoraBatch([LoraGroup(0, 37, view)]).linear(x[13:], base, 0, "qkv"))

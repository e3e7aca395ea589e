"""Norm and gate against the written-out formula and autograd through it."""

import pytest
import torch
from torch.nn import functional as F

from loreloop.model.pointwise import gated_silu, rms_norm


def plain_norm(x, weight, eps):
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def plain_gate(gate_up):
    gate, up = gate_up.chunk(2, dim=-1)
    return gate * torch.sigmoid(gate) * up


def both_ways(own, plain, x):
    """(own, plain), each an output and the gradient that a random one sends back."""
    dy = torch.randn_like(own(x))
    results = []
    for function in (own, plain):
        leaf = x.detach().clone().requires_grad_()
        y = function(leaf)
        y.backward(dy)
        results.append((y, leaf.grad))
    return results


@pytest.mark.parametrize("shape", [(1, 8), (7, 64), (5, 3, 16), (0, 8)], ids=str)
@pytest.mark.parametrize("scale", [1e-4, 1.0, 100.0])
def test_the_norm_and_its_gradient_are_the_formula_s(shape, scale):
    """The smallest scale is where eps weighs in."""
    x, weight = scale * torch.randn(shape), torch.randn(shape[-1])
    own, plain = both_ways(lambda t: rms_norm(t, weight, 1e-6, t.dtype), lambda t: plain_norm(t, weight, 1e-6), x)
    torch.testing.assert_close(own, plain, rtol=1e-4, atol=1e-5 / scale)


@pytest.mark.parametrize("n_rows", [0, 1, 7])
def test_the_gate_and_its_gradient_are_the_formula_s(n_rows):
    torch.testing.assert_close(*both_ways(gated_silu, plain_gate, 4 * torch.randn(n_rows, 24)), rtol=1e-4, atol=1e-5)


def test_a_closed_or_wide_open_gate_stays_finite():
    own, plain = both_ways(gated_silu, plain_gate, torch.tensor([[-100.0, 0.0, 100.0, 2.0, 2.0, 2.0]]))
    assert torch.isfinite(own[1]).all()
    torch.testing.assert_close(own, plain)


def test_a_norm_of_a_bf16_input_is_computed_in_fp32():
    x, weight = torch.randn(3, 64).bfloat16(), torch.randn(64)
    y = rms_norm(x, weight, 1e-6, torch.bfloat16)
    assert torch.equal(y, F.rms_norm(x.float(), (64,), weight, 1e-6).bfloat16())


def test_without_eps_no_gradient_goes_back_along_the_row():
    """Scaling a row does not change its norm, so that the gradient stands at right angles to it."""
    x = torch.randn(6, 32, requires_grad=True)
    rms_norm(x, torch.ones(32), 0.0, torch.float32).backward(torch.randn(6, 32))
    torch.testing.assert_close((x * x.grad).sum(-1), torch.zeros(6), atol=1e-5, rtol=0)

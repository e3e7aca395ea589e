"""Gates against their formulas, and their gradients against those of autograd."""

import pytest
import torch
from torch.nn import functional as F

from loreloop.model.gates import GATES


def clamped(gate, up):
    gate, up = gate.clamp(max=7), up.clamp(-7, 7)
    return (up + 1) * gate * torch.sigmoid(1.702 * gate)


PLAIN = {
    "silu": lambda gate, up: F.silu(gate) * up,
    "gelu_tanh": lambda gate, up: F.gelu(gate, approximate="tanh") * up,
    "clamped_silu": clamped,
}


@pytest.mark.parametrize("name", GATES)
def test_a_gate_and_its_gradient_are_the_formulas(name):
    """The numbers reach beyond the borders of the clamped gate."""
    x = 6 * torch.randn(50, 24, generator=torch.Generator().manual_seed(0))
    own, plain = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = GATES[name].forward(own), PLAIN[name](*plain.chunk(2, -1))
    torch.testing.assert_close(y, expected)
    dy = torch.randn(50, 12, generator=torch.Generator().manual_seed(1))
    y.backward(dy)
    expected.backward(dy)
    torch.testing.assert_close(own.grad, plain.grad, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(GATES[name].forward(x), expected)
        torch.testing.assert_close(GATES[name].backward(x, dy), plain.grad, rtol=1e-4, atol=1e-5)

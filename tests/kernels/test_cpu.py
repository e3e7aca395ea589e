"""The kernels against the tensor library's own steps, and what happens without a compiler."""

import subprocess
import sys

import pytest
import torch

from loreloop.kernels import cpu
from loreloop.model.attention_spec import RopeSpec
from loreloop.model.pointwise import add_rms_norm
from loreloop.model.rope import RopeTable

BF16 = torch.bfloat16
ROWS = [0, 1, 3, 64, 200]
has_kernels = pytest.mark.skipif(not cpu.supports(torch.empty(0), BF16), reason="no C compiler")


def numbers(*shape, seed=0, dtype=BF16):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@has_kernels
@pytest.mark.parametrize("n_rows", ROWS)
@pytest.mark.parametrize("width", [1, 17, 576])
def test_norm_is_the_librarys(n_rows, width):
    x_TD, delta_TD, weight_D = (
        numbers(n_rows, width, dtype=torch.float32),
        numbers(n_rows, width, seed=1),
        numbers(width),
    )
    sum_TD, normed_TD = cpu.add_rms_norm(x_TD, delta_TD, weight_D.float(), 1e-5)
    assert torch.equal(sum_TD, x_TD + delta_TD)
    expected_TD = torch.nn.functional.rms_norm(sum_TD, (width,), weight_D.float(), 1e-5)
    torch.testing.assert_close(normed_TD.float(), expected_TD, rtol=2**-8, atol=1e-6)


@has_kernels
def test_adding_first_or_in_the_norm_is_the_same():
    x_TD, delta_TD, weight_D = numbers(5, 64, dtype=torch.float32), numbers(5, 64, seed=1), torch.ones(64)
    with torch.no_grad():
        fused = add_rms_norm(x_TD, delta_TD, weight_D, 1e-5, BF16)
    apart = add_rms_norm(x_TD, delta_TD, weight_D, 1e-5, BF16)
    assert all(torch.equal(a, b) for a, b in zip(fused, apart, strict=True))


@has_kernels
@pytest.mark.parametrize("n_rows", ROWS)
@pytest.mark.parametrize("width", [1, 17, 1536])
def test_gate_is_the_librarys(n_rows, width):
    gate_up_TF2 = 8 * numbers(n_rows, 2 * width)
    gate_TF, up_TF = gate_up_TF2.chunk(2, -1)
    expected_TF = torch.nn.functional.silu(gate_TF) * up_TF
    torch.testing.assert_close(cpu.gated_silu(gate_up_TF2), expected_TF, rtol=2**-7, atol=1e-6)


@has_kernels
def test_gate_of_extreme_numbers():
    gate_up_12 = torch.tensor([[200.0, -200.0, 0.0, float("inf"), float("nan"), 1.0, 1.0, 1.0, 1.0, 1.0]], dtype=BF16)
    out_1F = cpu.gated_silu(gate_up_12)
    assert out_1F[0, :4].tolist() == pytest.approx([200.0, 0.0, 0.0, float("inf")], abs=1e-30)
    assert out_1F[0, 4].isnan()


@has_kernels
@pytest.mark.parametrize("n_rows", ROWS)
@pytest.mark.parametrize("width", [1, 17, 576])
def test_the_norm_hands_back_what_autograd_does(n_rows, width):
    x_TD, dy_TD, weight_D = numbers(n_rows, width, dtype=torch.float32), numbers(n_rows, width, seed=1), numbers(width)
    x_TD.requires_grad_()
    torch.nn.functional.rms_norm(x_TD, (width,), weight_D.float(), 1e-5).backward(dy_TD.float())
    dx_TD = cpu.rms_norm_backward(x_TD.detach(), dy_TD, weight_D.float(), 1e-5)
    torch.testing.assert_close(dx_TD, x_TD.grad, rtol=1e-4, atol=1e-4)


@has_kernels
@pytest.mark.parametrize("n_rows", ROWS)
@pytest.mark.parametrize("width", [1, 17, 1536])
def test_the_gate_hands_back_what_autograd_does(n_rows, width):
    gate_up_TF2, dy_TF = 8 * numbers(n_rows, 2 * width), numbers(n_rows, width, seed=1)
    leaf_TF2 = gate_up_TF2.float().requires_grad_()
    gate_TF, up_TF = leaf_TF2.chunk(2, -1)
    (torch.nn.functional.silu(gate_TF) * up_TF).backward(dy_TF.float())
    torch.testing.assert_close(
        cpu.gated_silu_backward(gate_up_TF2, dy_TF).float(), leaf_TF2.grad, rtol=2**-8, atol=1e-6
    )


@has_kernels
def test_the_gate_hands_back_finite_gradients_of_extreme_numbers():
    gate_up_TF2, dy_TF = torch.tensor([[200.0, -200.0, 2.0, 2.0]], dtype=BF16), torch.ones(1, 2, dtype=BF16)
    assert cpu.gated_silu_backward(gate_up_TF2, dy_TF)[0].tolist() == pytest.approx([2, 0, 200, 0], abs=1e-30)


@has_kernels
@pytest.mark.parametrize("n_rows", ROWS[1:])
@pytest.mark.parametrize("d_head", [2, 16, 64, 80])
def test_turned_keys_and_values_lie_in_their_slots(n_rows, d_head):
    heads_TNE = numbers(n_rows, 4 + 2 + 2, d_head)
    q_THE, k_TGE, v_TGE = heads_TNE.split((4, 2, 2), dim=1)
    rope = RopeTable(RopeSpec(theta=1e4), d_head, torch.device("cpu")).at(torch.arange(n_rows) * 3)
    slot_T = torch.randperm(2 * n_rows, generator=torch.Generator().manual_seed(0))[:n_rows]
    cache_S2GE = torch.zeros(2 * n_rows, 2, 2, d_head, dtype=BF16)
    out_THE = cpu.turn_and_store(q_THE, k_TGE, v_TGE, cpu.Angles(rope.cos_T1E, rope.sin_T1E), slot_T, cache_S2GE)
    assert torch.equal(out_THE, rope.rotate(q_THE))
    assert torch.equal(cache_S2GE[slot_T], torch.stack((rope.rotate(k_TGE), v_TGE), 1))
    assert cache_S2GE.count_nonzero() == cache_S2GE[slot_T].count_nonzero()  # nothing was written elsewhere


@pytest.mark.parametrize("environment", [{"LORELOOP_KERNELS": "0"}, {"CC": "false", "PATH": "/nowhere"}])
def test_without_kernels_all_works_the_plain_way(environment):
    code = (
        "import torch; from loreloop.model.pointwise import gated_silu; print(gated_silu(torch.ones(1, 4).bfloat16()))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "0.7305" in done.stdout


def test_a_compiler_that_fails_is_told_and_done_without(tmp_path):
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\nexit 3\n")
    compiler.chmod(0o755)
    code = "import torch; from loreloop.kernels import cpu; print(cpu.supports(torch.empty(0), torch.bfloat16))"
    environment = {"CC": str(compiler), "XDG_CACHE_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert "could not be built" in done.stderr

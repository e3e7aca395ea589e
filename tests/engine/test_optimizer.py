"""AdamW against torch's own, and what a step may not do: move without gradients, or take in infinite ones."""

import math

import pytest
import torch
from torch.overrides import TorchFunctionMode

from loreloop.engine.contract import HalfChanged
from loreloop.engine.training import optimizer
from loreloop.engine.training.model_state import ModelState, new_state
from loreloop.engine.training.optimizer import adam_step
from loreloop.model.attention_spec import RopeSpec
from loreloop.model.spec import DecoderSpec
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.training import AdamParams, LoraSpec

SPEC = DecoderSpec("llama", 64, 32, 2, 2, 1, 16, 48, RopeSpec(1e4), 1e-5, 128, tie_embeddings=True)
VECTORS = ("master", "moment1", "moment2", "grad")


@pytest.fixture
def state() -> ModelState:
    return new_state(SPEC, LoraSpec(3, 0), torch.float32, torch.device("cpu"))


def give_grad(state, seed=0, scale=1.0):
    grad = torch.randn(state.grad.shape, generator=torch.Generator().manual_seed(seed)) * scale
    state.grad.add_(grad)
    state.has_grad = True
    return grad


def vectors(state):
    return {name: getattr(state, name).clone() for name in VECTORS}


def assert_unmoved(state, before):
    assert all(torch.equal(getattr(state, name), before[name]) for name in ("master", "moment1", "moment2"))
    assert state.n_steps == 0
    assert torch.equal(state.weights.flat, state.master)


@pytest.mark.parametrize("clip", [0.0, 0.5, 1e12])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_steps_equal_torch(state, clip, decay):
    plain = torch.nn.Parameter(state.master.clone())
    reference = torch.optim.AdamW([plain], lr=1e-2, betas=(0.8, 0.95), eps=1e-8, weight_decay=decay)
    for seed in range(5):
        plain.grad = give_grad(state, seed)
        if clip:
            torch.nn.utils.clip_grad_norm_([plain], clip)
        reference.step()
        adam_step(state, AdamParams(1e-2, 0.8, 0.95, 1e-8, decay, clip))
    torch.testing.assert_close(state.master, plain.data, rtol=1e-4, atol=1e-6)


def test_norms_are_those_of_the_gradient_before_clipping_and_of_the_change(state):
    before, grad = state.master.clone(), give_grad(state, scale=100)
    metrics = adam_step(state, AdamParams(1e-3, grad_clip_norm=1.0, weight_decay=0.1))
    assert metrics["unclipped_grad_l2:mean"] == pytest.approx(float(grad.norm()), rel=1e-5)
    assert metrics["update_l2:mean"] == pytest.approx(float((state.master - before).norm()), rel=1e-3)


def test_gradients_add_up_until_a_step_clears_them(state):
    give_grad(state, 0)
    give_grad(state, 1)
    other = new_state(SPEC, LoraSpec(3, 0), torch.float32, torch.device("cpu"))
    other.grad.add_(state.grad)
    other.has_grad = True
    adam_step(state, AdamParams(1e-2))
    adam_step(other, AdamParams(1e-2))
    assert torch.equal(state.master, other.master)
    assert not state.grad.any()
    assert not state.has_grad


def test_a_step_without_gradients_succeeds_and_moves_nothing(state):
    before = vectors(state)
    metrics = adam_step(state, AdamParams(1.0, weight_decay=0.5))
    assert metrics == {"unclipped_grad_l2:mean": 0.0, "update_l2:mean": 0.0}
    assert_unmoved(state, before)


def test_gradients_of_zero_are_gradients(state):
    state.has_grad = True
    metrics = adam_step(state, AdamParams(1e-2, grad_clip_norm=1.0))
    assert metrics == {"unclipped_grad_l2:mean": 0.0, "update_l2:mean": 0.0}
    assert state.n_steps == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_infinite_gradients_fail_the_step_and_are_cleared(state, value):
    before = vectors(state)
    give_grad(state)
    state.grad[7] = value
    with pytest.raises(BadRequest, match="cleared"):
        adam_step(state, AdamParams(1e-2))
    assert_unmoved(state, before)
    assert not state.grad.any()
    assert not state.has_grad


def test_a_model_learns_on_after_a_failed_step(state):
    fresh = new_state(SPEC, LoraSpec(3, 0), torch.float32, torch.device("cpu"))
    state.grad.fill_(math.nan)
    state.has_grad = True
    with pytest.raises(BadRequest):
        adam_step(state, AdamParams(1e-2))
    for one in (state, fresh):
        give_grad(one)
        adam_step(one, AdamParams(1e-2))
    assert torch.equal(state.master, fresh.master)


def test_a_huge_but_finite_gradient_leaves_no_infinity_behind(state):
    give_grad(state, scale=1e25)
    try:
        adam_step(state, AdamParams(1e-2))
    except BadRequest:
        assert not state.has_grad
    assert all(getattr(state, name).isfinite().all() for name in VECTORS)


def test_the_compute_copy_follows_the_master_in_its_own_precision():
    state = new_state(SPEC, LoraSpec(3, 0), torch.bfloat16, torch.device("cpu"))
    give_grad(state)
    adam_step(state, AdamParams(1e-2))
    assert torch.equal(state.weights.flat, state.master.bfloat16())
    assert state.master.dtype == torch.float32


class Calls(TorchFunctionMode):
    """Raises at the `wrong`-th call of torch, counted from 0, and notes which calls took more memory than a number's
    before and after the first change of `watched`."""

    def __init__(self, watched, wrong=-1):
        self.watched, self.wrong, self.n_calls, self.taken, self.seen = watched, wrong, 0, [], []
        self.version = watched._version

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.n_calls += 1
        if self.n_calls - 1 == self.wrong:
            raise MemoryError("no room")
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.numel() > 1:
            inputs = [each for each in (*args, *(kwargs or {}).values()) if isinstance(each, torch.Tensor)]
            here = result.untyped_storage().data_ptr()
            is_new = all(here != each.untyped_storage().data_ptr() for each in (*inputs, *self.seen))
            self.seen.append(result)  # held, so that no other tensor comes to lie there
            if is_new:
                self.taken.append("before" if self.watched._version == self.version else "after")
        return result


def ready(params):
    """A state that samples read, behind a step, with gradients."""
    state = new_state(SPEC, LoraSpec(3, 0), torch.float32, torch.device("cpu"))
    give_grad(state, 1)
    adam_step(state, params)
    give_grad(state, 2)
    state.publish()
    return state


def test_whatever_call_fails_a_step_is_not_begun_or_ends_the_engine(monkeypatch):
    """A failed operation is left out where the journal is executed again, so half of one must not stay either."""
    monkeypatch.setattr(optimizer, "CHUNK", 5000)
    params = AdamParams(1e-2, grad_clip_norm=1.0)
    expected, calls = ready(params), Calls(torch.empty(0))
    before = vectors(expected)
    with calls:
        adam_step(expected, params)
    ends = set()
    for wrong in range(calls.n_calls):
        state = ready(params)
        try:
            with Calls(state.master, wrong):
                adam_step(state, params)
        except MemoryError:
            ends.add("not begun")
            assert all(torch.equal(getattr(state, name), before[name]) for name in VECTORS)
            assert torch.equal(state.weights.flat, state.master)
            adam_step(state, params)
            assert torch.equal(state.master, expected.master)
        except HalfChanged:
            ends.add("ended")
    assert ends == {"not begun", "ended"}


def test_a_step_takes_no_memory_once_it_changes_numbers(monkeypatch):
    monkeypatch.setattr(optimizer, "CHUNK", 5000)
    params = AdamParams(1e-2)
    state = ready(params)
    with Calls(state.moment1) as calls:
        adam_step(state, params)
    assert set(calls.taken) == {"before"}

"""Every loss against its formula written out token by token, values and gradients; and what a pass may not contain."""

import math

import numpy as np
import pytest
import torch

from loreloop.engine.losses.table import LOSSES
from loreloop.engine.training.checks import check_pass
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.tensors import Tensor, tensor_of
from loreloop.protocol.training import Datum, ImageChunk, TextChunk
from tests.engine.train_rig import datum, policy_datum, train_pass

N = 50
RANDOM = torch.Generator().manual_seed(0)
LOGP = torch.randn(N, generator=RANDOM) - 3
INPUTS = {
    "logprobs": LOGP + 0.5 * torch.randn(N, generator=RANDOM),
    "advantages": torch.randn(N, generator=RANDOM) * (torch.rand(N, generator=RANDOM) < 0.7),
    "weights": torch.randn(N, generator=RANDOM),
    "sequence_ratio_mask": (torch.arange(N) >= 20).float(),
}
EACH = list(zip(LOGP.tolist(), INPUTS["logprobs"].tolist(), INPUTS["advantages"].tolist(), strict=True))


def evaluate(name, config=None, logp=LOGP, **inputs):
    """Value and ∂/∂logp of a loss with its defaults."""
    leaf = logp.clone().requires_grad_()
    value = LOSSES[name](leaf, INPUTS | inputs, {**LOSSES[name].config, **(config or {})})
    return value.item(), torch.autograd.grad(value, leaf)[0]


def check(name, values, slopes, config=None, **inputs):
    """The loss is the sum of `values`, and `slopes` are its derivatives."""
    total, grad = evaluate(name, config, **inputs)
    assert total == pytest.approx(sum(values), rel=1e-5)
    torch.testing.assert_close(grad, torch.tensor(slopes), rtol=1e-4, atol=1e-6)


def clip(r, low=0.8, high=1.2):
    return min(max(r, low), high)


def ppo_term(r, a, low=0.8, high=1.2):
    """Value and slope of one token: the slope is zero exactly where the bound holds it."""
    free = r * a <= clip(r, low, high) * a
    return -min(r * a, clip(r, low, high) * a), -r * a if free else 0.0


def test_cross_entropy():
    weights = INPUTS["weights"].tolist()
    check("cross_entropy", [-w * lp for w, lp in zip(weights, LOGP.tolist(), strict=True)], [-w for w in weights])


def test_cross_entropy_without_weights_has_weights_of_one():
    inputs = {"target_tokens": torch.ones(N, dtype=torch.int64)}
    ones = inputs | {"weights": torch.ones(N)}
    loss = LOSSES["cross_entropy"]
    assert loss(LOGP, inputs, {}).item() == loss(LOGP, ones, {}).item()
    assert torch.equal(loss.active(inputs), loss.active(ones))


def test_importance_sampling():
    terms = [-math.exp(lp - q) * a for lp, q, a in EACH]
    check("importance_sampling", terms, terms)


def test_ppo():
    terms = [ppo_term(math.exp(lp - q), a) for lp, q, a in EACH]
    check("ppo", [value for value, _ in terms], [slope for _, slope in terms])


def test_ppo_with_bounds_of_the_request():
    terms = [ppo_term(math.exp(lp - q), a, 0.5, 3.0) for lp, q, a in EACH]
    config = {"clip_low_threshold": 0.5, "clip_high_threshold": 3.0}
    check("ppo", [value for value, _ in terms], [slope for _, slope in terms], config)


def test_bounds_of_a_token_replace_those_of_the_request():
    low, high = torch.linspace(0.5, 1, N), torch.linspace(1, 2, N)
    terms = [
        ppo_term(math.exp(x[0] - x[1]), x[2], lo, hi)
        for x, lo, hi in zip(EACH, low.tolist(), high.tolist(), strict=True)
    ]
    bounds = {"clip_low_threshold": low, "clip_high_threshold": high}
    config = {"clip_low_threshold": 0.0, "clip_high_threshold": 0.1}
    check("ppo", [value for value, _ in terms], [slope for _, slope in terms], config, **bounds)


def test_cispo():
    weights = [clip(math.exp(lp - q)) for lp, q, _ in EACH]
    slopes = [-w * a for w, (_, _, a) in zip(weights, EACH, strict=True)]
    check("cispo", [slope * lp for slope, lp in zip(slopes, LOGP.tolist(), strict=True)], slopes)


def test_dro():
    values = [-(lp * a - 0.5 * 0.05 * (lp - q) ** 2) for lp, q, a in EACH]
    check("dro", values, [-(a - 0.05 * (lp - q)) for lp, q, a in EACH])


def test_gspo():
    s = math.exp(sum(lp - q for lp, q, _ in EACH[20:]) / (N - 20))
    terms = [ppo_term(s, a) for _, _, a in EACH]
    check("gspo", [value for value, _ in terms], [slope for _, slope in terms])


def test_gspo_without_a_masked_token_has_the_ratio_one():
    total, grad = evaluate("gspo", sequence_ratio_mask=torch.zeros(N))
    assert total == pytest.approx(-sum(a for *_, a in EACH), rel=1e-4)
    torch.testing.assert_close(grad, -INPUTS["advantages"])


def test_stable_reinforce():
    terms = [(min(math.exp(lp - q), 2.0) * a, lp, lp - q) if a else (0.0, lp, 0.0) for lp, q, a in EACH]
    values = [-wa * lp + 0.1 * 0.5 * d**2 for wa, lp, d in terms]
    check("stable_reinforce", values, [-wa + 0.1 * d for wa, _, d in terms], {"kl_coeff": 0.1})


def test_stable_reinforce_pulls_on_every_sampled_token():
    sampled = torch.arange(N) >= 30
    _, grad = evaluate("stable_reinforce", {"kl_coeff": 1.0}, advantages=torch.zeros(N), sampled=sampled)
    torch.testing.assert_close(grad, torch.where(sampled, LOGP - INPUTS["logprobs"], torch.zeros(N)))


@pytest.mark.parametrize("name", LOSSES)
def test_inactive_positions_have_no_gradient(name):
    _, grad = evaluate(name)
    assert not grad[~LOSSES[name].active(INPUTS)].any()


@pytest.mark.parametrize("name", LOSSES)
def test_tokens_may_have_several_targets(name):
    wide = {key: value.reshape(10, 5) for key, value in INPUTS.items()}
    value, grad = evaluate(name, logp=LOGP.reshape(10, 5), **wide)
    flat_value, flat_grad = evaluate(name)
    assert value == pytest.approx(flat_value, rel=1e-5)
    torch.testing.assert_close(grad.flatten(), flat_grad)


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"cross_entropy", "dro"}))
def test_a_zero_advantage_masks_whatever_the_sampler_said(name):
    advantages, logprobs = INPUTS["advantages"].clone(), INPUTS["logprobs"].clone()
    advantages[:10], logprobs[:10] = 0, -99999.0  # where a sampler reports nothing
    value, grad = evaluate(name, advantages=advantages, logprobs=logprobs)
    assert math.isfinite(value)
    assert grad.isfinite().all()


GOOD = policy_datum(range(5), sequence_ratio_mask=np.ones(5))
REFUSED = {
    "unknown loss": (train_pass(datum(range(5)), loss="nothing"), "nothing"),
    "unknown setting": (train_pass(datum(range(5)), config={"beta": 1.0}), "beta"),
    "infinite setting": (train_pass(policy_datum(range(5)), loss="dro", config={"beta": math.inf}), "finite"),
    "no datum": (train_pass(), "no datum"),
    "no token": (train_pass(Datum((), {})), "Datum 0"),
    "past the window": (train_pass(datum([1] * 101)), "100"),
    "unknown token": (train_pass(datum([1, 512, 3], [1, 2, 3])), "512"),
    "negative token": (train_pass(datum([1, -1, 3], [1, 2, 3])), "-1"),
    "unknown target": (train_pass(datum(range(5)), datum([1, 2, 3], [1, 2, 512])), "Datum 1"),
    "an image": (train_pass(Datum((ImageChunk(b"", "png"),), {})), "image"),
    "an input that no loss knows": (train_pass(datum(range(5), other=np.ones(5))), "No loss knows other"),
    "no advantages": (train_pass(datum(range(5), logprobs=np.ones(5)), loss="ppo"), "advantages"),
    "an input too many": (train_pass(datum(range(5), weights=np.ones(5), mask=np.ones(5))), "mask"),
    "no mask": (train_pass(policy_datum(range(5)), loss="gspo"), "sequence_ratio_mask"),
    "unequal lengths": (train_pass(datum(range(5), weights=np.ones(4))), "weights"),
    "unequal targets": (train_pass(datum(range(5), np.arange(4), weights=np.ones(4))), "5"),
    "unequal shapes": (train_pass(datum(range(5), np.ones((5, 2)), weights=np.ones(5))), "equal"),
    "no column": (train_pass(datum(range(5), np.ones((5, 0)))), "column"),
    "three dimensions": (train_pass(datum(range(5), np.ones((5, 1, 1)))), "shape"),
    "NaN": (train_pass(datum(range(3), weights=[1, math.nan, 1])), "NaN"),
    "infinite": (train_pass(policy_datum(range(3), clip_low_threshold=[1, math.inf, 1]), loss="ppo"), "finite"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_pass_without_meaning_is_refused_with_the_place(case):
    op, named = REFUSED[case]
    with pytest.raises(BadRequest) as refusal:
        check_pass(op, vocab_size=512, context_window=100)
    assert named in refusal.value.message


def test_a_wrong_dtype_is_refused():
    weights = tensor_of(np.ones(3, np.int64))
    data = Datum((TextChunk(bytes(12)),), {"target_tokens": Tensor("int64", (3,), bytes(24)), "weights": weights})
    with pytest.raises(BadRequest, match="float32"):
        check_pass(train_pass(data), 512, 100)


@pytest.mark.parametrize("name", ["importance_sampling", "ppo", "cispo", "dro", "stable_reinforce"])
def test_a_sound_pass_is_taken(name):
    check_pass(train_pass(policy_datum(range(5)), loss=name), vocab_size=512, context_window=100)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_one_datum_serves_every_loss(name):
    """What a loss does not use is let pass, whatever it holds."""
    surplus = policy_datum(range(5), sequence_ratio_mask=np.ones(5), weights=np.ones(5), clip_low_threshold=np.ones(5))
    check_pass(train_pass(surplus, loss=name), vocab_size=512, context_window=100)
    if name == "cross_entropy":
        check_pass(train_pass(datum(range(5), advantages=[math.nan])), 512, 100)


def test_gspo_takes_its_mask_and_clips():
    check_pass(train_pass(GOOD, loss="gspo", config={"clip_low_threshold": 0.9}), 512, 100)

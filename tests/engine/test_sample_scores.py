"""What a request can ask about its prompt and its tokens, and the shapes in which it is answered."""

import numpy as np
import pytest
import torch

from loreloop.protocol.sampling import PromptScores
from loreloop.protocol.tensors import tensor_of
from tests.engine.sample_rig import (
    base_state,
    floats,
    make_sampler,
    one,
    run,
    sample_op,
    top_ids,
    top_logprobs,
    trainer_logprobs,
)
from tests.engine.train_rig import Rig, random_tokens
from tests.tiny import make_tiny_model

PROMPT = random_tokens(29)
EMPTY_LOGPROB = -99999.0


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    return Rig(make_tiny_model(tmp_path_factory.mktemp("model"), "qwen2", vocab_size=300), deterministic=True)


@pytest.fixture(scope="module")
def expected(rig):
    """log p of the prompt's tokens but the first, as training sees them."""
    return trainer_logprobs(rig, PROMPT_300, base_state(rig))


PROMPT_300 = [token % 300 for token in PROMPT]


def report(rig, prompt=PROMPT_300, sampler=None, **scores):
    params = {name: scores.pop(name) for name in ("temperature", "seed", "n") if name in scores}
    return one(sampler or make_sampler(rig), sample_op(prompt, scores=PromptScores(**scores), **params)).report


def test_nothing_is_reported_unless_asked(rig):
    empty = one(make_sampler(rig), sample_op(PROMPT_300)).report
    assert not any((empty.logprobs, empty.topk, empty.targets, empty.alt_tokens, empty.alt_logprobs))


@pytest.mark.parametrize("prefill_tokens", [1, 5, 64])
def test_prompt_logprobs_are_trainings_and_begin_undefined(rig, expected, prefill_tokens):
    logprobs = floats(report(rig, logprobs=True, sampler=make_sampler(rig, prefill_tokens=prefill_tokens)).logprobs)
    assert logprobs[0].isnan()
    assert torch.equal(logprobs[1:], expected)


def test_prompt_logprobs_are_of_temperature_one(rig, expected):
    assert torch.equal(floats(report(rig, logprobs=True, temperature=0.3).logprobs)[1:], expected)


@pytest.mark.parametrize("last_n", [0, 1, 7, 28])
def test_only_the_last_n_are_scored(rig, expected, last_n):
    logprobs = floats(report(rig, logprobs=True, last_n=last_n).logprobs)
    assert torch.equal(logprobs.isnan(), torch.arange(29) < 29 - last_n)
    assert torch.equal(logprobs[29 - last_n :], expected[28 - last_n :])


def test_what_is_known_is_reused_as_far_as_nothing_there_is_scored(rig, expected):
    sampler = make_sampler(rig)
    one(sampler, sample_op(PROMPT_300))
    answer = one(sampler, sample_op(PROMPT_300, scores=PromptScores(logprobs=True, last_n=5)))
    assert answer.cache_hit_tokens == 23  # position 24 is scored by the hidden state of 23
    assert torch.equal(floats(answer.report.logprobs)[24:], expected[23:])


def test_everything_can_be_asked_again_after_the_prompt_became_known(rig, expected):
    sampler = make_sampler(rig)
    for _ in range(2):
        assert torch.equal(floats(report(rig, logprobs=True, sampler=sampler).logprobs)[1:], expected)


def test_top_k_of_the_prompt_holds_the_best_tokens_in_order(rig):
    topk = report(rig, logprobs=True, top_k=5).topk
    assert (topk.k, topk.length) == (5, 29)
    ids, logprobs = top_ids(topk), top_logprobs(topk)
    assert (ids[0] == 0).all()
    assert (logprobs[0] == EMPTY_LOGPROB).all()
    assert (np.diff(logprobs[1:]) <= 0).all()
    every = top_ids(report(rig, top_k=300).topk)[1:]
    assert all(set(row) == set(range(300)) for row in every.tolist())
    assert (every[:, :5] == ids[1:]).all()


def test_more_than_the_vocabulary_leaves_cells_empty(rig):
    topk = report(rig, top_k=310).topk
    assert (top_logprobs(topk)[1:, 300:] == EMPTY_LOGPROB).all()
    assert (top_ids(topk)[1:, 300:] == 0).all()
    assert np.exp(top_logprobs(topk)[1:, :300]).sum(-1) == pytest.approx(1, abs=1e-5)


def test_targets_are_scored_where_they_are_asked(rig, expected):
    targets = np.full((28, 3), -1, np.int64)
    targets[:, 1] = PROMPT_300[1:]
    targets[4, 0] = 17
    answer = report(rig, targets=tensor_of(targets), top_k=300)
    scored = answer.targets.numpy()
    assert (scored.shape, scored.dtype) == ((28, 3), np.float32)
    assert torch.equal(torch.tensor(scored[:, 1]), expected)
    (place,) = np.flatnonzero(top_ids(answer.topk)[5] == 17)
    assert scored[4, 0] == top_logprobs(answer.topk)[5, place]
    assert (np.delete(scored[:, 0], 4) == 0).all()
    assert (scored[:, 2] == 0).all()


def test_alternatives_are_drawn_from_what_follows_each_position(rig):
    answer = report(rig, alt_tokens_k=4, top_k=300)
    ids, logprobs = answer.alt_tokens.numpy(), answer.alt_logprobs.numpy()
    assert (ids.shape, ids.dtype, logprobs.shape) == ((28, 4), np.int64, (28, 4))
    for row in range(28):
        known = dict(zip(top_ids(answer.topk)[row + 1], top_logprobs(answer.topk)[row + 1], strict=True))
        assert logprobs[row] == pytest.approx([known[token] for token in ids[row]], abs=1e-6)
    assert len({tuple(row) for row in ids.tolist()}) > 20


def test_alternatives_follow_seed_and_temperature(rig):
    first, again, other = (report(rig, alt_tokens_k=8, seed=s).alt_tokens for s in (1, 1, 2))
    assert first == again != other
    greedy = report(rig, alt_tokens_k=3, top_k=1, temperature=0)
    assert (greedy.alt_tokens.numpy() == top_ids(greedy.topk)[1:]).all()


def test_alternatives_have_the_right_frequencies(rig):
    prompt = PROMPT_300[:2]
    answer = report(rig, prompt, alt_tokens_k=1000, top_k=300, temperature=1.0)
    p = np.exp(top_logprobs(answer.topk)[1])
    counts = np.bincount(answer.alt_tokens.numpy()[0], minlength=300)[top_ids(answer.topk)[1]]
    often = p * 1000 >= 8
    chi_square = ((counts[often] - 1000 * p[often]) ** 2 / (1000 * p[often])).sum()
    assert chi_square < often.sum() + 4 * np.sqrt(2 * often.sum())


def test_a_prompt_of_one_token_has_nothing_to_report(rig):
    answer = report(rig, [5], logprobs=True, top_k=2, alt_tokens_k=2)
    assert floats(answer.logprobs).isnan().tolist() == [True]
    assert answer.alt_tokens.shape == (0, 2)
    assert (answer.topk.length, answer.topk.k) == (1, 2)


def test_the_prompt_is_reported_once_for_many_samples(rig, expected):
    answer = one(make_sampler(rig), sample_op(PROMPT_300, n=3, scores=PromptScores(logprobs=True)))
    assert torch.equal(floats(answer.report.logprobs)[1:], expected)
    assert len(answer.reasons) == 3


def test_the_report_comes_before_the_first_token(rig):
    sampler = make_sampler(rig, prefill_tokens=8)
    sampler.admit(sample_op(PROMPT_300, n=2, scores=PromptScores(logprobs=True)), None)
    events = [event for _ in range(40) for event in sampler.step()]
    assert [type(event).__name__ for event in events] == ["PromptEvent"] + ["TokenEvent"] * 16


def test_reports_of_requests_in_one_step_are_not_mixed_up(rig):
    prompts = {str(i): PROMPT_300[i:] for i in range(5)}
    ops = [sample_op(prompt, request=name, scores=PromptScores(logprobs=True)) for name, prompt in prompts.items()]
    together = run(make_sampler(rig, prefill_tokens=20), *ops)
    for name, prompt in prompts.items():
        expected = trainer_logprobs(rig, prompt, base_state(rig))
        assert torch.equal(floats(together[name].report.logprobs)[1:], expected)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_top_k_of_the_samples_tokens_agrees_with_their_logprobs(rig, temperature):
    answer = one(make_sampler(rig), sample_op(PROMPT_300, topk=300, temperature=temperature))
    for token, logprob, topk in zip(answer.tokens[0], answer.logprobs[0], answer.topk[0], strict=True):
        assert (topk.k, topk.length) == (300, 1)
        (place,) = np.flatnonzero(top_ids(topk)[0] == token)
        assert top_logprobs(topk)[0, place] == np.float32(logprob)
        assert np.exp(top_logprobs(topk)).sum() == pytest.approx(1, abs=1e-5)


def test_top_k_of_a_token_beyond_the_vocabulary_leaves_cells_empty(rig):
    (topk, *_) = one(make_sampler(rig), sample_op(PROMPT_300, topk=310)).topk[0]
    assert top_ids(topk).shape == (1, 310)
    assert (top_logprobs(topk)[0, 300:] == EMPTY_LOGPROB).all()

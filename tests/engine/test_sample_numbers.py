"""Sampling gives the numbers of a plain implementation, and those that training gives for the same tokens."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from loreloop.protocol.sampling import PromptScores
from loreloop.protocol.tensors import tensor_of
from tests.engine.sample_rig import (
    base_state,
    floats,
    make_sampler,
    one,
    partial_of,
    run,
    sample_op,
    top_ids,
    top_logprobs,
    trainer_logprobs,
)
from tests.engine.train_rig import Rig, random_tokens
from tests.tiny import make_tiny_model

PROMPT = random_tokens(37)
SCORED = PromptScores(logprobs=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("model"), "qwen3")


@pytest.fixture(scope="module")
def rig(folder):
    return Rig(folder)


@pytest.fixture(scope="module")
def exact(folder):
    return Rig(folder, deterministic=True)


@pytest.fixture(scope="module")
def reference(folder):
    """(tokens) → (T, V) logits of the published implementation."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()

    def logits(tokens):
        with torch.no_grad():
            return model(torch.tensor([tokens])).logits[0]

    return logits


def deltas(logprobs, reference):
    return (torch.as_tensor(logprobs) - reference).abs()


@pytest.mark.numbers
def test_greedy_follows_the_published_model(rig, reference):
    answer = one(make_sampler(rig), sample_op(PROMPT, temperature=0, max_tokens=12))
    tokens = list(PROMPT)
    for token, logprob in zip(answer.tokens[0], answer.logprobs[0], strict=True):
        logp_V = reference(tokens)[-1].log_softmax(-1)
        assert token == int(logp_V.argmax())
        assert abs(logprob - float(logp_V[token])) <= 1e-4
        tokens.append(token)


@pytest.mark.numbers
@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_logprobs_are_those_of_the_scaled_distribution_without_filters(rig, reference, temperature):
    op = sample_op(PROMPT, temperature=temperature, top_k=20, top_p=0.9, max_tokens=20)
    answer = one(make_sampler(rig), op)
    tokens = PROMPT + answer.tokens[0]
    logp_TV = (reference(tokens) / temperature).log_softmax(-1)[len(PROMPT) - 1 : -1]
    expected = logp_TV.gather(1, torch.tensor(answer.tokens[0])[:, None])[:, 0]
    assert deltas(answer.logprobs[0], expected).max() <= 1e-4


@pytest.mark.numbers
def test_filters_keep_to_their_sets(rig, reference):
    answer = one(make_sampler(rig), sample_op(PROMPT, top_k=3, temperature=2.0, max_tokens=40))
    tokens = PROMPT + answer.tokens[0]
    ranks = (reference(tokens)[len(PROMPT) - 1 : -1].argsort(-1, descending=True))[:, :3]
    assert all(token in rank for token, rank in zip(answer.tokens[0], ranks.tolist(), strict=True))
    nucleus = one(make_sampler(rig), sample_op(PROMPT, top_p=1e-9, max_tokens=12))
    assert nucleus.tokens == one(make_sampler(rig), sample_op(PROMPT, temperature=0, max_tokens=12)).tokens


@pytest.mark.numbers
def test_prompt_scores_are_the_published_models(rig, reference):
    targets = np.array([[5, -1, PROMPT[i + 1]] for i in range(len(PROMPT) - 1)])
    scores = PromptScores(logprobs=True, top_k=4, targets=tensor_of(targets.astype(np.int64)))
    report = one(make_sampler(rig, prefill_tokens=10), sample_op(PROMPT, scores=scores)).report
    logp_TV = reference(PROMPT).log_softmax(-1)[:-1]
    logprobs = floats(report.logprobs)
    own = logp_TV.gather(1, torch.tensor(PROMPT[1:])[:, None])[:, 0]
    assert logprobs[0].isnan()
    assert deltas(logprobs[1:], own).max() <= 1e-4
    best = logp_TV.topk(4)
    assert (top_ids(report.topk)[1:] == best.indices.numpy()).all()
    assert np.abs(top_logprobs(report.topk)[1:] - best.values.numpy()).max() <= 1e-4
    targeted = report.targets.numpy().copy()
    assert deltas(targeted[:, 2], own).max() <= 1e-4
    assert deltas(targeted[:, 0], logp_TV[:, 5]).max() <= 1e-4
    assert (targeted[:, 1] == 0).all()


def adapter_of(rig, kind):
    return base_state(rig) if kind == "base" else rig.state(unembed=kind == "unembed")


def scored_and_sampled(rig, state, *, n_tokens=60, prefill_tokens=16, seed=1, prompt=PROMPT):
    """All tokens of one sample, and the log-probs that the sampler gave to all but the first."""
    op = sample_op(prompt, scores=SCORED, max_tokens=n_tokens, seed=seed, revision="a")
    answer = one(make_sampler(rig, prefill_tokens=prefill_tokens), op, state.weights)
    tokens = prompt + answer.tokens[0]
    return tokens, torch.cat((floats(answer.report.logprobs)[1:], torch.tensor(answer.logprobs[0])))


@pytest.mark.parametrize("kind", ["base", "lora", "unembed"])
def test_sampler_equals_trainer_in_fp32(rig, kind):
    state = adapter_of(rig, kind)
    tokens, logprobs = scored_and_sampled(rig, state)
    assert deltas(logprobs, trainer_logprobs(rig, tokens, state)).max() <= 1e-4


@pytest.mark.parametrize("kind", ["base", "lora", "unembed"])
@pytest.mark.parametrize("prefill_tokens", [7, 64])
def test_sampler_equals_trainer_bit_for_bit_if_asked(exact, kind, prefill_tokens):
    state = adapter_of(exact, kind)
    tokens, logprobs = scored_and_sampled(exact, state, prefill_tokens=prefill_tokens)
    assert torch.equal(logprobs, trainer_logprobs(exact, tokens, state))


def test_sampler_equals_trainer_bit_for_bit_in_bf16(folder):
    rig = Rig(folder, deterministic=True, dtype=torch.bfloat16)
    state = rig.state()
    tokens, logprobs = scored_and_sampled(rig, state)
    assert torch.equal(logprobs, trainer_logprobs(rig, tokens, state))


def test_a_large_vocabulary_on_two_threads_changes_no_bit(tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1}
    rig = Rig(make_tiny_model(tmp_path, vocab_size=49_152, **sizes), deterministic=True)
    n_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        state = rig.state()
        tokens, logprobs = scored_and_sampled(rig, state, n_tokens=4, prompt=random_tokens(200), prefill_tokens=200)
        assert torch.equal(logprobs, trainer_logprobs(rig, tokens, state))
    finally:
        torch.set_num_threads(n_threads)


def test_sampler_and_trainer_stay_close_in_bf16(folder):
    rig = Rig(folder, dtype=torch.bfloat16)
    state = rig.state()
    pairs = [scored_and_sampled(rig, state, n_tokens=200, seed=seed) for seed in range(5)]
    sampled = torch.cat([logprobs for _, logprobs in pairs])
    trained = torch.cat([trainer_logprobs(rig, tokens, state) for tokens, _ in pairs])
    assert deltas(sampled, trained).mean() <= 0.01
    ratio = trained - sampled
    assert (ratio.exp() - 1 - ratio).mean() <= 2e-4  # an estimate of the KL divergence that cannot be negative


def test_adapters_of_several_models_share_a_step(rig):
    states = {"a": rig.state(rank=4, seed=1), "b": rig.state(rank=8, seed=2, unembed=True), "": base_state(rig)}
    ops = [
        sample_op(PROMPT[i:], request=f"{revision}{i}", revision=revision, seed=i, max_tokens=16)
        for i in range(3)
        for revision in states
    ]
    answers = run(make_sampler(rig), *((op, states[op.request_id[:-1]].weights if op.revision else None) for op in ops))
    for op in ops:
        tokens, state = PROMPT[int(op.request_id[-1]) :] + answers[op.request_id].tokens[0], states[op.request_id[:-1]]
        expected = trainer_logprobs(rig, tokens, state)[-16:]
        assert deltas(answers[op.request_id].logprobs[0], expected).max() <= 1e-4


def test_a_resumed_sample_goes_on_as_if_nothing_had_happened(exact):
    whole = one(make_sampler(exact), sample_op(PROMPT, n=2, max_tokens=20))
    parts = tuple(partial_of(whole.tokens[i][:n], whole.logprobs[i][:n]) for i, n in enumerate((7, 0)))
    rest = one(make_sampler(exact), sample_op(PROMPT, n=2, max_tokens=20, resume=parts))
    assert rest.tokens[0] == whole.tokens[0][7:]
    assert rest.logprobs[0] == whole.logprobs[0][7:]
    assert (rest.tokens[1], rest.logprobs[1]) == (whole.tokens[1], whole.logprobs[1])

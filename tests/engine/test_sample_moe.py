"""Sampling over routed experts gives the numbers of transformers and those of training."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from loreloop.protocol.sampling import PromptScores
from tests.engine.sample_rig import floats, make_sampler, one, run, sample_op, trainer_logprobs
from tests.engine.train_rig import Rig, random_tokens
from tests.tiny import make_tiny_model

FAMILIES = ["mixtral", "qwen3_moe", "deepseek_v3"]
PROMPT = random_tokens(37)
SCORED = PromptScores(logprobs=True)


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("model"), request.param)


@pytest.fixture(scope="module")
def rig(folder):
    return Rig(folder)


@pytest.mark.numbers
def test_greedy_follows_the_published_model(folder, rig):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    answer = one(make_sampler(rig), sample_op(PROMPT, temperature=0, max_tokens=12))
    tokens = list(PROMPT)
    for token, logprob in zip(answer.tokens[0], answer.logprobs[0], strict=True):
        with torch.no_grad():
            logp_V = model(torch.tensor([tokens])).logits[0, -1].log_softmax(-1)
        assert token == int(logp_V.argmax())
        assert abs(logprob - float(logp_V[token])) <= 1e-4
        tokens.append(token)


@pytest.mark.parametrize("experts", ["shared_outer", "per_expert"])
def test_the_sampler_gives_the_trainers_numbers(rig, experts):
    states = [rig.state(rank=4, experts=experts), rig.state(rank=6, seed=1)]
    ops = [sample_op(PROMPT, request=str(i), scores=SCORED, max_tokens=20) for i in range(2)]
    sampler = make_sampler(rig)
    answers = run(sampler, *[(op, state.publish()) for op, state in zip(ops, states, strict=True)])
    for i, state in enumerate(states):
        answer = answers[str(i)]
        trained = trainer_logprobs(rig, PROMPT + answer.tokens[0], state)
        sampled = torch.cat((floats(answer.report.logprobs)[1:], torch.tensor(answer.logprobs[0])))
        assert (sampled - trained).abs().max() <= 5e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_deterministic_sampling_is_the_trainer_bit_for_bit(folder, dtype):
    exact = Rig(folder, deterministic=True, dtype=dtype)
    state = exact.state(rank=8)
    others = [(sample_op(random_tokens(9, i), request=f"o{i}", max_tokens=30), state.publish()) for i in range(3)]
    answer = run(make_sampler(exact), (sample_op(PROMPT, max_tokens=20), state.publish()), *others)["r"]
    trained = trainer_logprobs(exact, PROMPT + answer.tokens[0], state)[len(PROMPT) - 1 :]
    assert torch.equal(torch.tensor(answer.logprobs[0]), trained)

"""Every family beyond the plain ones: against transformers in training and in sampling, and against itself."""

import pytest
import torch
from transformers import AutoModelForCausalLM, Olmo3Config

from loreloop.model.count import count_adapter
from loreloop.model.lora import LoraLayout
from loreloop.protocol.sampling import PromptScores
from loreloop.protocol.training import LoraSpec
from tests.engine.moe_reference import DeltaReference, named_gradients
from tests.engine.sample_rig import floats, make_sampler, run, sample_op, trainer_logprobs
from tests.engine.train_rig import Rig, datum, random_tokens, relative_error, train_pass
from tests.tiny import make_tiny_model

CASES = {
    "gemma2": ("gemma2", {"tie_word_embeddings": False}),
    "gemma3": ("gemma3_text", {}),
    "glm4_moe": ("glm4_moe", {"tie_word_embeddings": False}),
    "gpt_oss": ("gpt_oss", {}),
    "granite": ("granite", {}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "ministral": ("ministral", {}),
    "ministral3": ("ministral3", {}),
    "mistral": ("mistral", {"tie_word_embeddings": False}),
    "mixtral-window": ("mixtral", {"sliding_window": 9}),
    "olmo2": ("olmo2", {}),
    "olmo3": ("olmo3", {}),
    "phi3": ("phi3", {}),
    "qwen2-window": ("qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}),
    "smollm3": ("smollm3", {}),
}
if "convert_rope_params_to_dict" in vars(Olmo3Config):
    # Older transformers stretch its layers with a window too, as the published models do not.
    CASES["olmo3-stretched"] = ("olmo3", {"rope_scaling": {"rope_type": "yarn", "factor": 8.0, "rope_theta": 5e5}})
PROMPT = random_tokens(37)
SCORED = PromptScores(logprobs=True)


@pytest.fixture(scope="module", params=CASES, ids=str)
def folder(request, tmp_path_factory):
    family, settings = CASES[request.param]
    return make_tiny_model(tmp_path_factory.mktemp("model"), family, **settings)


@pytest.fixture(scope="module")
def rig(folder):
    return Rig(folder)


def rollouts(n=4):
    """Answers that share a prompt, and some of them the beginning of their answer."""
    prompt = random_tokens(21)
    return [datum(prompt + random_tokens(6, i // 2) + random_tokens(10 + i, 100 + i)) for i in range(n)]


@pytest.mark.numbers
def test_log_probs_and_gradients_equal_autograd_through_transformers(folder, rig):
    """In one batch, so that prefixes are shared and sequences lie end to end."""
    state = rig.state(rank=3, unembed=not rig.decoder.spec.tie_embeddings)
    reference = DeltaReference(folder, state)
    data = [*rollouts(), datum(random_tokens(60, 5), weights=torch.randn(60))]
    logps = rig.run((state, train_pass(*data)))[0]
    expected = [reference.logprobs(d) for d in data]
    for own, theirs in zip(logps, expected, strict=True):
        assert (own - theirs).abs().max() <= 1e-4
    loss = -sum((torch.tensor(d.inputs["weights"].numpy()) * lp).sum() for d, lp in zip(data, expected, strict=True))
    own, theirs = named_gradients(state), reference.gradients(loss)
    assert own.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert relative_error(own[name], gradient) <= 1e-4, name


@pytest.mark.numbers
def test_greedy_follows_the_published_model(folder, rig):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    op = sample_op(PROMPT, temperature=0, max_tokens=8)
    answer = run(make_sampler(rig), op)["r"]
    with torch.no_grad():
        logp_TV = model(torch.tensor([PROMPT + answer.tokens[0]])).logits[0].log_softmax(-1)[len(PROMPT) - 1 : -1]
    assert answer.tokens[0] == logp_TV.argmax(-1).tolist()
    assert (torch.tensor(answer.logprobs[0]) - logp_TV.amax(-1)).abs().max() <= 1e-4


def test_the_sampler_gives_the_trainers_numbers(rig):
    """Prompts come in chunks, and the second finds the first's beginning in the cache."""
    state = rig.state(rank=4)
    prompts = [PROMPT, PROMPT[:20] + random_tokens(70, 3)]
    sampler, adapter = make_sampler(rig, prefill_tokens=16), state.publish()
    for number, prompt in enumerate(prompts):
        op = sample_op(prompt, request=str(number), scores=SCORED if number == 0 else None, max_tokens=20)
        answer = run(sampler, (op, adapter))[str(number)]
        trained = trainer_logprobs(rig, prompt + answer.tokens[0], state)
        sampled = torch.tensor(answer.logprobs[0])
        if number == 0:
            sampled = torch.cat((floats(answer.report.logprobs)[1:], sampled))
        assert (sampled - trained[-len(sampled) :]).abs().max() <= 5e-5
    assert answer.cache_hit_tokens >= 16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_deterministic_numbers_are_the_same_bits_alone_together_and_sampled(folder, dtype):
    exact = Rig(folder, deterministic=True, dtype=dtype)
    state = exact.state(rank=8)
    together = exact.run((state, train_pass(*rollouts(), forward_only=True)))[0]
    alone = [exact.run((state, train_pass(d, forward_only=True)))[0][0] for d in rollouts()]
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))
    other = (sample_op(random_tokens(9, 2), request="o", max_tokens=30), state.publish())
    answer = run(make_sampler(exact), (sample_op(PROMPT, max_tokens=12), state.publish()), other)["r"]
    trained = trainer_logprobs(exact, PROMPT + answer.tokens[0], state)[len(PROMPT) - 1 :]
    assert torch.equal(torch.tensor(answer.logprobs[0]), trained)


def test_half_precision_stays_near(folder, rig):
    half = Rig(folder, dtype=torch.bfloat16)
    states = rig.state(), half.state()
    means = [torch.cat(r.run((s, train_pass(*rollouts())))[0]) for r, s in zip((rig, half), states, strict=True)]
    assert (means[0] - means[1]).abs().mean() <= 0.15
    assert states[1].grad.isfinite().all()


def test_a_count_is_the_size_of_an_adapter(rig):
    spec = rig.decoder.spec
    for form in ("shared_outer", "per_expert"):
        assert LoraLayout(spec, LoraSpec(4, 0, experts=form, train_unembed=True)).size == (
            count_adapter(spec, 4, form).total
        )

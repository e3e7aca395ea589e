"""Training over routed experts: against transformers, against itself in other batches, and what it reports."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.engine.moe_reference import DeltaReference, named_gradients
from tests.engine.train_rig import Rig, datum, laid_out, random_tokens, relative_error, train_pass
from tests.tiny import make_tiny_model

FAMILIES = ["mixtral", "qwen3_moe", "deepseek_v3"]


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("model"), request.param, tie_word_embeddings=False)


@pytest.fixture(scope="module")
def rig(folder):
    return Rig(folder)


def rollouts(n=5):
    prompt = random_tokens(20)
    return [datum(prompt + random_tokens(5, i // 2) + random_tokens(10, 100 + i)) for i in range(n)]


@pytest.mark.numbers
@pytest.mark.parametrize("experts", ["shared_outer", "per_expert"])
def test_log_probs_and_gradients_equal_autograd_through_transformers(folder, rig, experts):
    state = rig.state(rank=3, unembed=True, experts=experts)
    reference = DeltaReference(folder, state)
    data = [datum(random_tokens(40)), datum(random_tokens(15, 1), weights=torch.randn(15))]
    logps = rig.run((state, train_pass(*data)))[0]
    expected = [reference.logprobs(d) for d in data]
    for own, theirs in zip(logps, expected, strict=True):
        assert (own - theirs).abs().max() <= 1e-4
    loss = -sum((torch.tensor(d.inputs["weights"].numpy()) * lp).sum() for d, lp in zip(data, expected, strict=True))
    own = named_gradients(state)
    theirs = reference.gradients(loss)
    assert own.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert relative_error(own[name], gradient) <= 1e-4, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_deterministic_log_probs_do_not_depend_on_the_batch(folder, dtype):
    exact = Rig(folder, deterministic=True, dtype=dtype)
    state = exact.state(rank=8)
    together = exact.run((state, train_pass(*rollouts(), forward_only=True)))[0]
    alone = [exact.run((state, train_pass(d, forward_only=True)))[0][0] for d in rollouts()]
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))


def test_tenants_with_experts_of_both_forms_share_a_batch_without_noticing(rig):
    shapes = [{"rank": 2}, {"rank": 5, "experts": "per_expert"}, {"rank": 3, "mlp": False}, {"rank": 4, "attn": False}]
    together, alone = ([rig.state(seed=i, **s) for i, s in enumerate(shapes)] for _ in range(2))
    logps = rig.run(*[(state, train_pass(*rollouts(3))) for state in together])
    for state, own, batched in zip(together, alone, logps, strict=True):
        for some, other in zip(batched, rig.run((own, train_pass(*rollouts(3))))[0], strict=True):
            assert (some - other).abs().max() <= 5e-5
        assert relative_error(state.grad, own.grad) <= 1e-4


def test_recomputed_activations_change_nothing(rig, folder):
    small = Rig(folder, max_rows=16)
    whole, cut = rig.state(), small.state()
    rig.run((whole, train_pass(datum(random_tokens(40)))))
    small.run((cut, train_pass(datum(random_tokens(40)))))
    assert relative_error(cut.grad, whole.grad) <= 1e-5


def test_half_precision_stays_near(tmp_path, folder):
    folder = make_tiny_model(tmp_path, "mixtral", initializer_range=0.05)
    whole, half = Rig(folder), Rig(folder, dtype=torch.bfloat16)
    states = whole.state(), half.state()
    for r, state in zip((whole, half), states, strict=True):
        r.run((state, train_pass(*rollouts())))
    assert relative_error(states[1].grad, states[0].grad) <= 0.1


@pytest.mark.numbers
def test_the_load_of_experts_comes_back(folder, rig):
    spec = rig.decoder.spec.moe
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids, hooks = [], []
    for name, module in model.named_modules():
        if name.endswith("mlp.experts"):
            hooks.append(module.register_forward_hook(lambda _, args, __: ids.append(args[1])))
    tokens = random_tokens(30)
    with torch.no_grad():
        model(torch.tensor([tokens]))
    counts = torch.stack([torch.bincount(i.flatten(), minlength=spec.n_experts) for i in ids]).double()
    share = counts / counts.mean(-1, keepdim=True)
    state = rig.state()
    state.master.zero_()
    state.refresh_weights()
    work = laid_out(train_pass(datum(tokens)), state)
    rig.trainer.run([work])
    metrics = work.result().metrics
    assert metrics["e_frac_with_tokens:mean"] == pytest.approx(float((counts > 0).double().mean()))
    assert metrics["e_frac_oversubscribed:mean"] == pytest.approx(float((share > 1).double().mean()))
    assert metrics["e_max_violation:mean"] == pytest.approx(float((share.amax(-1) - 1).mean()))
    assert metrics["e_max_violation:max"] == pytest.approx(float(share.max() - 1))
    assert metrics["e_min_violation:mean"] == pytest.approx(float((1 - share.amin(-1)).mean()))


def test_experts_swapped_give_other_numbers(folder, rig):
    state, swapped = rig.state(), Rig(folder)
    before = rig.run((state, train_pass(datum(random_tokens(30)), forward_only=True)))[0][0]
    experts = swapped.decoder.layers[-1].feed_forward.experts
    experts[0], experts[1] = experts[1], experts[0]
    after = swapped.run((state, train_pass(datum(random_tokens(30)), forward_only=True)))[0][0]
    assert (before - after).abs().max() > 0.1

"""What may not change a result: sharing, splitting, order, neighbours, recomputation. And what may not leak."""

import numpy as np
import pytest
import torch

from loreloop.engine.training.packing import PackItem, pack
from tests.engine.train_rig import Rig, datum, laid_out, policy_datum, random_tokens, relative_error, train_pass
from tests.tiny import make_tiny_model

MAX_DELTA, MEAN_DELTA = 5e-5, 5e-6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("model"), "qwen2")


@pytest.fixture(scope="module")
def rig(folder):
    return Rig(folder)


@pytest.fixture(scope="module")
def exact(folder):
    return Rig(folder, deterministic=True)


def rollouts(n=6, n_prompt=50, n_answer=20):
    """A group of answers to one prompt, some of which begin alike."""
    prompt = random_tokens(n_prompt)
    return [datum(prompt + random_tokens(10, i // 2) + random_tokens(n_answer - 10, 100 + i)) for i in range(n)]


def assert_close(some, others):
    deltas = torch.cat([(a - b).abs().flatten() for a, b in zip(some, others, strict=True)])
    assert deltas.max() <= MAX_DELTA
    assert deltas.mean() <= MEAN_DELTA


def test_equal_prefixes_are_computed_once():
    items = [
        PackItem(i, 0, np.frombuffer(d.chunks[0].tokens, "<i4").astype(np.int64)) for i, d in enumerate(rollouts())
    ]
    assert len(pack(items).tokens_T) == 50 + 3 * 10 + 6 * 10


@pytest.mark.parametrize("unembed", [False, True])
def test_sharing_a_prefix_changes_nothing(rig, unembed):
    together, alone = rig.state(unembed=unembed), rig.state(unembed=unembed)
    shared = rig.run((together, train_pass(*rollouts())))[0]
    single = [rig.run((alone, train_pass(d)))[0][0] for d in rollouts()]
    assert_close(shared, single)
    assert relative_error(together.grad, alone.grad) <= 1e-4


def test_a_sequence_inside_another_and_twice_the_same_are_all_answered(rig):
    tokens = random_tokens(30)
    data = [datum(tokens), datum(tokens[:12]), datum(tokens), datum(tokens[:1])]
    together, alone = rig.state(), rig.state()
    logps = rig.run((together, train_pass(*data)))[0]
    assert [len(logp) for logp in logps] == [30, 12, 30, 1]
    assert_close(logps, [rig.run((alone, train_pass(d)))[0][0] for d in data])
    assert relative_error(together.grad, alone.grad) <= 1e-4


def test_the_order_of_a_batch_changes_nothing(rig):
    forward, backward = rig.state(), rig.state()
    logps = rig.run((forward, train_pass(*rollouts())))[0]
    reversed_logps = rig.run((backward, train_pass(*reversed(rollouts()))))[0]
    assert_close(logps, reversed_logps[::-1])
    assert relative_error(backward.grad, forward.grad) <= 1e-5


def test_split_batches_add_up(rig):
    whole, split = rig.state(), rig.state()
    logps = rig.run((whole, train_pass(*rollouts())))[0]
    parts = rig.run((split, train_pass(*rollouts()[:2])))[0] + rig.run((split, train_pass(*rollouts()[2:])))[0]
    assert_close(logps, parts)
    assert relative_error(split.grad, whole.grad) <= 1e-5


@pytest.mark.parametrize("max_rows", [32, 100])
def test_micro_batches_and_recomputed_activations_change_nothing(rig, folder, max_rows):
    small = Rig(folder, max_rows=max_rows)
    whole, cut = rig.state(), small.state()
    assert_close(rig.run((whole, train_pass(*rollouts())))[0], small.run((cut, train_pass(*rollouts())))[0])
    assert relative_error(cut.grad, whole.grad) <= 1e-5


def test_tenants_of_different_rank_share_a_batch_without_noticing(rig):
    shapes = [{"rank": 1}, {"rank": 8, "unembed": True}, {"rank": 5, "mlp": False}, {"rank": 3, "attn": False}]
    together, alone = (
        [rig.state(seed=i, **s) for i, s in enumerate(shapes)],
        [rig.state(seed=i, **s) for i, s in enumerate(shapes)],
    )
    passes = [train_pass(*rollouts(4), loss="cross_entropy") for _ in shapes]
    logps = rig.run(*zip(together, passes, strict=True))
    for state, own, op, batched in zip(together, alone, passes, logps, strict=True):
        assert_close(batched, rig.run((own, op))[0])
        assert relative_error(state.grad, own.grad) <= 1e-4


def test_passes_of_one_model_with_different_losses_share_a_batch(rig):
    together, apart = rig.state(), rig.state()
    passes = [
        train_pass(*rollouts(2)),
        train_pass(policy_datum(random_tokens(40)), loss="ppo"),
        train_pass(datum(random_tokens(20), torch.randint(0, 512, (20, 2)))),
        train_pass(policy_datum(random_tokens(40), sequence_ratio_mask=np.ones(40)), loss="gspo"),
    ]
    logps = rig.run(*[(together, op) for op in passes])
    for op, batched in zip(passes, logps, strict=True):
        assert_close(batched, rig.run((apart, op))[0])
    assert relative_error(together.grad, apart.grad) <= 1e-4


def test_forward_only_gives_the_same_numbers_and_leaves_gradients_alone(rig):
    state = rig.state()
    scored = rig.run((state, train_pass(*rollouts(), forward_only=True)))[0]
    assert not state.has_grad
    assert not state.grad.any()
    assert_close(scored, rig.run((state, train_pass(*rollouts())))[0])


def test_forward_and_backward_passes_of_one_model_may_share_a_batch(rig):
    both, alone = rig.state(), rig.state()
    rig.run((both, train_pass(*rollouts(), forward_only=True)), (both, train_pass(*rollouts())))
    rig.run((alone, train_pass(*rollouts())))
    assert torch.equal(both.grad, alone.grad)


def test_weights_of_zero_make_a_gradient_of_zero(rig):
    state = rig.state()
    rig.run((state, train_pass(datum(random_tokens(20), weights=np.zeros(20)))))
    assert state.has_grad
    assert not state.grad.any()


def test_negative_and_tiny_weights_count_as_they_are(rig):
    weights = np.linspace(-1e-6, 2, 20)
    whole = rig.grad(train_pass(datum(random_tokens(20), weights=weights)))
    parts = sum(
        rig.grad(train_pass(datum(random_tokens(20), weights=np.where(np.arange(20) % 2 == odd, weights, 0))))
        for odd in (0, 1)
    )
    assert relative_error(parts, whole) <= 1e-4


def test_a_pass_that_overflows_spoils_no_neighbour(rig):
    bad, good, alone = rig.state(seed=1), rig.state(seed=2), rig.state(seed=2)
    overflow = datum(random_tokens(20), logprobs=np.full(20, -1e4), advantages=np.ones(20))
    rig.run((bad, train_pass(overflow, loss="importance_sampling")), (good, train_pass(*rollouts())))
    rig.run((alone, train_pass(*rollouts())))
    assert not bad.grad.isfinite().all()
    assert relative_error(good.grad, alone.grad) <= 1e-4


def test_masked_positions_may_hold_any_log_prob(rig):
    logprobs, advantages = np.full(20, -6.0), np.ones(20)
    advantages[:10] = 0
    plain = rig.grad(train_pass(datum(random_tokens(20), logprobs=logprobs, advantages=advantages), loss="ppo"))
    logprobs[:10] = 0
    padded = rig.grad(train_pass(datum(random_tokens(20), logprobs=logprobs, advantages=advantages), loss="ppo"))
    assert torch.equal(plain, padded)


def test_the_loss_is_a_sum_over_data_and_never_a_mean(rig):
    sums = [loss_sum(rig, data) for data in (rollouts(), rollouts()[:3], rollouts()[3:])]
    assert sums[0] == pytest.approx(sums[1] + sums[2], rel=1e-5)


def loss_sum(rig, data):
    work = laid_out(train_pass(*data, forward_only=True), rig.state())
    rig.trainer.run([work])
    assert work.result().metrics["loss:sum"] == pytest.approx(-sum(float(logp.sum()) for logp in work.logps.values()))
    return work.result().metrics["loss:sum"]


def test_the_same_passes_make_the_same_bits(rig):
    passes = [train_pass(*rollouts()), train_pass(policy_datum(random_tokens(40)), loss="cispo")]
    states = [rig.state(unembed=True) for _ in range(2)]
    runs = [rig.run(*[(state, op) for op in passes]) for state in states]
    logps = [torch.cat([logp for of_pass in run for logp in of_pass]) for run in runs]
    assert torch.equal(states[0].grad, states[1].grad)
    assert torch.equal(*logps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_deterministic_log_probs_do_not_depend_on_the_batch(folder, dtype):
    exact = Rig(folder, deterministic=True, dtype=dtype)
    state = exact.state()
    together = exact.run((state, train_pass(*rollouts(), forward_only=True)))[0]
    alone = [exact.run((state, train_pass(d, forward_only=True)))[0][0] for d in rollouts()]
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))


def test_deterministic_and_fast_agree(rig, exact):
    fast, slow = rig.state(unembed=True), exact.state(unembed=True)
    assert_close(rig.run((fast, train_pass(*rollouts())))[0], exact.run((slow, train_pass(*rollouts())))[0])
    assert relative_error(slow.grad, fast.grad) <= 1e-4


def test_half_precision_stays_near(tmp_path):
    folder = make_tiny_model(tmp_path, initializer_range=0.05)
    whole, half = Rig(folder), Rig(folder, dtype=torch.bfloat16)
    states = whole.state(), half.state()
    logps = [
        torch.cat(r.run((state, train_pass(*rollouts())))[0]) for r, state in zip((whole, half), states, strict=True)
    ]
    assert (logps[0] - logps[1]).abs().mean() <= 0.01
    assert relative_error(states[1].grad, states[0].grad) <= 0.02
    assert states[1].grad.dtype == torch.float32


@pytest.mark.parametrize(("n_tokens", "n_blocks"), [(20, 1), (300, 3)])
def test_training_pauses_after_every_product_and_every_block_of_attention_and_head(rig, n_tokens, n_blocks):
    forward = rig.decoder.spec.n_layers * (4 + 1) + n_blocks
    backward = rig.decoder.spec.n_layers * (4 + n_blocks)
    op = train_pass(datum(random_tokens(n_tokens)))
    # The head scores and makes a gradient at once; one that is trained makes its logits again, softmax and all.
    assert pauses(rig, op) == forward + n_blocks + backward
    assert pauses(rig, op, unembed=True) == forward + 3 * n_blocks + backward
    assert pauses(rig, train_pass(datum(random_tokens(n_tokens)), forward_only=True)) == forward


def test_a_long_sequence_pauses_inside_its_attention(rig):
    n_pieces, n_blocks = 3, 20
    layers = rig.decoder.spec.n_layers
    assert pauses(rig, train_pass(datum(random_tokens(2500)), forward_only=True)) == layers * (4 + n_pieces) + n_blocks


def pauses(rig, op, **lora):
    n_pauses = 0

    def pause():
        nonlocal n_pauses
        n_pauses += 1

    rig.trainer.run([laid_out(op, rig.state(**lora))], pause)
    return n_pauses

"""Samples share steps, prefixes and pages, and none of it shows in what they say; no page is left behind."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loreloop.protocol.sampling import PromptScores
from tests.engine.page_rig import check_pages
from tests.engine.sample_rig import drain, free_all, make_sampler, one, run, sample_op
from tests.engine.train_rig import Rig, random_tokens
from tests.tiny import make_tiny_model

PROMPT = random_tokens(43)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def rig(folder):
    return Rig(folder)


@pytest.fixture(scope="module")
def exact(folder):
    return Rig(folder, deterministic=True)


# ends


def test_weights_that_are_not_finite_fail_their_request_once_and_no_other(rig):
    broken = rig.state()
    broken.master.fill_(math.nan)
    broken.refresh_weights()
    ops = [
        (sample_op(PROMPT, request="broken", n=3, revision="diverged"), broken.weights),
        sample_op(PROMPT, request="sound"),
    ]
    sampler = make_sampler(rig)
    answers = run(sampler, *ops)
    (failed,) = answers["broken"].failures
    assert "not finite" in failed.failure.message
    assert not answers["broken"].tokens
    assert answers["sound"].tokens == one(make_sampler(rig), sample_op(PROMPT)).tokens
    assert free_all(sampler) == 0


def test_a_sample_ends_at_its_length_or_with_its_stop_token(rig):
    free = one(make_sampler(rig), sample_op(PROMPT, max_tokens=12))
    assert (len(free.tokens[0]), free.reasons[0]) == (12, "length")
    stop = free.tokens[0][5]
    stopped = one(make_sampler(rig), sample_op(PROMPT, max_tokens=12, stop_tokens=(stop, 511)))
    assert stopped.tokens[0] == free.tokens[0][: free.tokens[0].index(stop) + 1]
    assert stopped.reasons[0] == "stop"


def test_one_token_of_a_prompt_of_one_token(rig):
    answer = one(make_sampler(rig), sample_op([7], max_tokens=1))
    assert (len(answer.tokens[0]), answer.reasons[0], len(answer.prompts)) == (1, "length", 1)


def test_the_stop_token_may_be_the_last_one_allowed(rig):
    first = one(make_sampler(rig), sample_op(PROMPT, max_tokens=1)).tokens[0][0]
    assert one(make_sampler(rig), sample_op(PROMPT, max_tokens=1, stop_tokens=(first,))).reasons[0] == "stop"


def test_one_sample_of_several_can_be_finished_early(rig):
    sampler = make_sampler(rig)
    sampler.admit(sample_op(PROMPT, n=3), None)
    sampler.step()
    sampler.step()
    sampler.finish("r", 1)
    answer = drain(sampler)["r"]
    assert set(answer.reasons) == {0, 2}
    assert free_all(sampler) == 0


# draws


def test_samples_of_a_request_differ_and_repeat_with_their_seed(rig):
    first, again, other = (one(make_sampler(rig), sample_op(PROMPT, n=4, seed=seed)).tokens for seed in (5, 5, 6))
    assert len({tuple(tokens) for tokens in first.values()}) == 4
    assert first == again
    assert first != other


def test_a_sample_is_the_same_in_every_company(exact):
    ops = [sample_op(random_tokens(n, n), request=str(n), seed=n, temperature=1.5) for n in (1, 15, 16, 17, 40, 41, 70)]
    alone = {op.request_id: one(make_sampler(exact), op) for op in ops}
    together = run(make_sampler(exact, prefill_tokens=33), *ops)
    backwards = run(make_sampler(exact, prefill_tokens=9, page_tokens=4), *reversed(ops))
    for name, answer in alone.items():
        for other in (together[name], backwards[name]):
            assert (other.tokens, other.logprobs) == (answer.tokens, answer.logprobs)


def test_a_sample_is_the_same_beside_other_adapters(exact):
    states = [exact.state(rank=rank, seed=rank, unembed=rank == 4) for rank in (4, 8)]
    requests = [
        (sample_op(PROMPT[i:], request=f"{i}{a}", revision=str(a)), states[a].weights) for i in range(3) for a in (0, 1)
    ]
    together = run(make_sampler(exact), sample_op(PROMPT, request="base"), *requests)
    for op, adapter in requests:
        alone = one(make_sampler(exact), op, adapter)
        assert (together[op.request_id].tokens, together[op.request_id].logprobs) == (alone.tokens, alone.logprobs)


def test_fast_sampling_in_company_stays_within_rounding(rig):
    ops = [sample_op(random_tokens(20 + n, n), request=str(n), temperature=0) for n in range(20)]
    together = run(make_sampler(rig), *ops)
    for op in ops:
        alone = one(make_sampler(rig), op)
        assert together[op.request_id].tokens == alone.tokens
        assert together[op.request_id].logprobs[0] == pytest.approx(alone.logprobs[0], abs=5e-5)


# shared prefixes


def test_a_prompt_for_many_samples_is_computed_once_and_its_pages_are_shared(rig):
    sampler = make_sampler(rig, page_tokens=8)
    sampler.admit(sample_op(PROMPT, n=4, max_tokens=4), None)
    sampler.step()  # the prompt, by the first sample
    sampler.step()  # one more token each
    pages = [row.pages for row in sampler.running]
    assert len(pages) == 4
    assert len({tuple(own[:5]) for own in pages}) == 1  # 40 of 43 tokens
    assert len({own[5] for own in pages}) == 4
    assert [row.n_computed for row in sampler.running] == [44, 43, 43, 43]


def test_equal_prompts_that_come_together_are_computed_once(rig):
    sampler = make_sampler(rig)
    answers = run(sampler, *(sample_op(PROMPT, request=str(i), seed=i) for i in range(4)))
    assert [answers[str(i)].cache_hit_tokens for i in range(4)] == [0, 42, 42, 42]  # the last token is always computed


def test_a_later_turn_finds_the_earlier_one(exact):
    sampler = make_sampler(exact)
    first = one(sampler, sample_op(PROMPT, max_tokens=10))
    turn = PROMPT + first.tokens[0] + random_tokens(9, 1)
    second = one(sampler, sample_op(turn))
    assert second.cache_hit_tokens == len(PROMPT) + 9  # the last token of a sample is drawn, but never computed
    fresh = one(make_sampler(exact), sample_op(turn))
    assert (second.tokens, second.logprobs) == (fresh.tokens, fresh.logprobs)


def test_a_prefix_is_not_shared_between_revisions(rig):
    sampler = make_sampler(rig)
    states = {name: rig.state(seed=seed) for seed, name in enumerate("ab")}
    hits = [
        one(sampler, sample_op(PROMPT, revision=name), states[name].weights if name else None).cache_hit_tokens
        for name in ("a", "b", "", "a")
    ]
    assert hits == [0, 0, 0, 42]


def test_a_dropped_revision_is_computed_anew(rig):
    sampler, state = make_sampler(rig), rig.state()
    one(sampler, sample_op(PROMPT, revision="a"), state.weights)
    sampler.drop_revision("a")
    assert one(sampler, sample_op(PROMPT, revision="a"), state.weights).cache_hit_tokens == 0


def test_sharing_changes_no_bit(exact):
    ops = [sample_op([*PROMPT[: 20 + 3 * i], i], request=str(i), n=2) for i in range(6)]
    sampler = make_sampler(exact, page_tokens=8)
    for _ in range(2):
        answers = run(sampler, *ops)
        for op in ops:
            alone = one(make_sampler(exact), op)
            assert (answers[op.request_id].tokens, answers[op.request_id].logprobs) == (alone.tokens, alone.logprobs)


def test_prompts_are_computed_in_chunks_while_others_decode(rig):
    sampler = make_sampler(rig, prefill_tokens=16)
    sampler.admit(sample_op(PROMPT[:3], request="short", max_tokens=20), None)
    sampler.step()
    sampler.admit(sample_op(random_tokens(100, 3), request="long"), None)
    for _ in range(6):
        assert [event.request_id for event in sampler.step()] == ["short"]
    assert "long" in {event.request_id for event in sampler.step()}  # 100 tokens take 7 chunks


# scarce pages


def test_samples_that_give_way_say_the_same_later(exact):
    ops = [sample_op(random_tokens(10 + i, i), request=str(i), max_tokens=30) for i in range(6)]
    roomy = run(make_sampler(exact), *ops)
    scarce_sampler = make_sampler(exact, n_pages=12, page_tokens=4)  # room for one sample and a bit
    scarce = run(scarce_sampler, *ops)
    for op in ops:
        name = op.request_id
        assert (scarce[name].tokens, scarce[name].logprobs) == (roomy[name].tokens, roomy[name].logprobs)
        assert len(scarce[name].prompts) == 1
    assert free_all(scarce_sampler) == 0


def test_a_prompt_report_survives_giving_way(exact):
    scores = PromptScores(logprobs=True, top_k=2, alt_tokens_k=2)
    ops = [sample_op(random_tokens(20, i), request=str(i), max_tokens=12, scores=scores) for i in range(4)]
    scarce = run(make_sampler(exact, n_pages=9, page_tokens=4, prefill_tokens=8), *ops)
    for op in ops:
        assert scarce[op.request_id].report == one(make_sampler(exact), op).report


def test_no_page_is_lost_over_many_requests(rig):
    sampler = make_sampler(rig, n_pages=10, page_tokens=8)
    for seed in range(20):
        one(sampler, sample_op(random_tokens(11, seed), max_tokens=10))
    assert free_all(sampler) == 0


def test_pages_known_to_the_tree_can_all_be_evicted(rig):
    sampler = make_sampler(rig, n_pages=16, page_tokens=8)
    for seed in range(3):
        one(sampler, sample_op(random_tokens(11, seed), max_tokens=10))
    sampler.tree.evict(16)
    assert sampler.pool.n_free == 16


def test_no_more_rows_run_than_allowed(rig):
    sampler = make_sampler(rig, max_running=3)
    sampler.admit(sample_op(PROMPT, n=8, max_tokens=3), None)
    while sampler.busy:
        sampler.step()
        assert len(sampler.running) <= 3
        assert sampler.has_room() == (len(sampler.running) + len(sampler.waiting) < 3)


ACTIONS = st.one_of(
    st.tuples(st.just("admit"), st.integers(0, 3), st.integers(1, 25), st.integers(1, 3)),
    st.tuples(st.just("step"), st.integers(1, 6)),
    st.tuples(st.just("cancel"), st.integers(0, 30)),
    st.tuples(st.just("finish"), st.integers(0, 30), st.integers(0, 2)),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(ACTIONS, max_size=25))
def test_whatever_happens_no_page_is_left_behind(rig, actions):
    sampler = make_sampler(rig, n_pages=12, page_tokens=4, max_running=4, prefill_tokens=16)
    for number, (action, *numbers) in enumerate(actions):
        match action, numbers:
            case "admit", (family, length, n):
                prompt = [family] * (length // 2) + random_tokens(length - length // 2, family)
                sampler.admit(sample_op(prompt, request=str(number), n=n, max_tokens=8, seed=number), None)
            case "step", (times,):
                for _ in range(times):
                    sampler.step()
            case "cancel", (request,):
                sampler.finish(str(request))
            case "finish", (request, index):
                sampler.finish(str(request), index)
        check_pages(sampler.pool)
        assert sampler.pool.n_free + sum(1 for held in sampler.pool.holders if held) == 12
    drain(sampler, max_steps=2000)
    sampler.tree.evict(12)
    assert sampler.pool.n_free == 12

"""Who is asked what and when: bounds hold, every task ends once, no token is too old, and nothing is lost."""

import asyncio
from collections import Counter

import httpx
import pytest
import tinker
from hypothesis import given, settings
from hypothesis import strategies as st

from loreloop.learn.breakdowns import NothingGraded
from loreloop.learn.environments.environment import Environment, OneAnswer, Step
from loreloop.learn.examples import Task
from loreloop.learn.learners.grpo import Grpo
from loreloop.learn.learners.reinforce_loop import RewardLearner
from loreloop.learn.plan import Plan
from loreloop.learn.rewards.reward import Answer, Score
from loreloop.learn.rewards.watched import Watched
from loreloop.learn.rollouts.collect import Collector, Pace
from loreloop.learn.rollouts.drawing import AnswerLimits, Policy, Requests
from loreloop.learn.rollouts.episodes import Player
from loreloop.learn.rollouts.values import Group, Observed
from loreloop.text.conversation import Conversation, Turn
from tests.learn.fake_sampler import STOP, FakeSampler, PlainWords


def task(*prompt: int) -> Task:
    return Task(Conversation((Turn("user", " ".join(map(str, prompt))),)))


async def by_length(answer: Answer, task: Task) -> Score:
    return Score(float(answer.n_tokens), {"tokens": answer.n_tokens})


def player(
    sampler: FakeSampler, limits: AnswerLimits, *, size: int = 3, make=lambda: OneAnswer(by_length), **bounds
) -> Player:
    return Player(make, PlainWords(), Requests(Policy(sampler), **bounds), limits, size)


def play(*args, task_: Task | None = None, **more) -> Group:
    return asyncio.run(player(*args, **more).group(task_ or task(1, 3), 0))


def test_a_group_is_one_request() -> None:
    sampler = FakeSampler()
    group = play(sampler, AnswerLimits(seed=5))
    assert [(prompt, n) for prompt, n, _ in sampler.asked] == [([1, 3], 3)]
    assert group.troubles == ()
    assert [rollout.answers[0].tokens for rollout in group.rollouts] == [(100, 101, 102, STOP)] * 3
    assert [rollout.reward for rollout in group.rollouts] == [4.0] * 3
    assert {rollout.ended for rollout in group.rollouts} == {True}
    assert [rollout.episode for rollout in group.rollouts] == ["0.0", "0.1", "0.2"]


def test_an_answer_goes_on_under_new_weights_with_each_tokens_revision() -> None:
    policy = Policy(FakeSampler(length=lambda prompt: 8 - (prompt.length - 2)))
    limits = AnswerLimits(most_tokens=7, piece=3)

    class Renewing(FakeSampler):
        async def sample(self, prompt, num_samples, sampling_params):
            response = await super().sample(prompt, num_samples, sampling_params)
            policy.renew(self)
            return response

    policy.sampler = renewing = Renewing(length=policy.sampler.length)
    group = asyncio.run(
        Player(lambda: OneAnswer(by_length), PlainWords(), Requests(policy), limits, 1).group(task(1, 3), 0)
    )
    (rollout,) = group.rollouts
    assert rollout.answers[0].revisions == (0, 0, 0, 1, 1, 1, 2)
    assert not rollout.ended
    assert [prompt for prompt, _, _ in renewing.asked] == [
        [1, 3],
        [1, 3, 100, 101, 102],
        [1, 3, 100, 101, 102, 100, 101, 102],
    ]
    assert [params.max_tokens for _, _, params in renewing.asked] == [3, 3, 1]


class Asking(Environment):
    """Asks again, twice, and rewards each answer a little."""

    async def reset(self, task: Task) -> Conversation:
        self.n = 0
        return task.prompt

    async def step(self, answer: Answer) -> Step:
        self.n += 1
        return Step((Turn("tool", "7 8"),), reward=0.5, parts={"asked": 1.0}, done=self.n == 3)


def test_turns_are_appended_exactly_as_they_were_drawn_and_shown() -> None:
    sampler = FakeSampler(length=lambda prompt: 2)
    group = play(sampler, AnswerLimits(seed=1), size=2, make=Asking)
    assert sorted(prompt for prompt, _, _ in sampler.asked) == [
        [1, 3],
        *[[1, 3, 100, STOP, 9, 7, 8]] * 2,
        *[[1, 3, 100, STOP, 9, 7, 8, 100, STOP, 9, 7, 8]] * 2,
    ]
    first, _ = group.rollouts
    assert [isinstance(turn, Observed) for turn in first.turns] == [False, True, False, True, False]
    assert (first.reward, first.parts) == (1.5, {"asked": 3.0})
    # No two requests draw the same random numbers.
    assert len({params.seed for _, _, params in sampler.asked}) == 5


@pytest.mark.parametrize(
    ("limits", "answers"),
    [
        (AnswerLimits(most_turns=2), [4, 4]),
        (AnswerLimits(most_episode_tokens=6), [4, 2]),
        (AnswerLimits(most_tokens=3, most_episode_tokens=8), [3, 3, 2]),
        # Two tokens of prompt, four of an answer and three behind it leave room for two more, or for none.
        (AnswerLimits(window=11), [4, 2]),
        (AnswerLimits(window=9), [4]),
    ],
)
def test_an_episode_ends_at_its_bounds(limits: AnswerLimits, answers: list[int]) -> None:
    (rollout,) = play(FakeSampler(), limits, size=1, make=Asking).rollouts
    assert [len(turn.tokens) for turn in rollout.answers] == answers


def test_an_episode_that_is_cut_off_earns_what_its_environment_says() -> None:
    class Counting(Asking):
        async def cut_off(self, answer: Answer) -> Step:
            return Step(reward=-2.0, parts={"asked": 10.0})

    (rollout,) = play(FakeSampler(), AnswerLimits(most_turns=2), size=1, make=Counting).rollouts
    assert (rollout.reward, rollout.parts) == (2 * 0.5 - 2.0, {"asked": 12.0})
    assert [turn.reward for turn in rollout.answers] == [0.5, -1.5]
    (whole,) = play(FakeSampler(), AnswerLimits(most_turns=3), size=1, make=Counting).rollouts
    assert whole.reward == 1.5


@pytest.mark.parametrize("reward", [float("nan"), float("inf")])
def test_a_reward_that_is_no_number_is_none(reward: float) -> None:
    async def odd(answer: Answer, task: Task) -> Score:
        return Score(reward)

    group = play(FakeSampler(), AnswerLimits(), size=2, make=lambda: OneAnswer(odd))
    assert (len(group.rollouts), group.graded) == (2, ())
    assert group.rollouts[0].trouble == f"the environment's reward is {reward}"


def test_a_failed_answer_takes_one_episode_and_not_its_group() -> None:
    sampler = FakeSampler(fails=lambda number: {1: "no luck", 2: "cancel"}.get(number))
    group = play(sampler, AnswerLimits(), size=3, make=Asking)
    assert len(group.rollouts) == 1
    assert group.n_failed == 2
    assert "TinkerError: no luck" in group.troubles


def test_the_first_answer_has_the_room_that_the_window_leaves() -> None:
    for piece in (None, 3):
        sampler = FakeSampler(length=lambda prompt: 50)
        group = play(sampler, AnswerLimits(most_tokens=10, window=6, piece=piece), size=1)
        assert [rollout.n_sampled for rollout in group.rollouts] == [4]
        assert max(len(prompt) + params.max_tokens for prompt, _, params in sampler.asked) == 6
    full = play(FakeSampler(), AnswerLimits(window=2), size=1)
    assert (full.rollouts, full.n_failed) == ((), 1)
    assert "A task has 2 tokens" in full.troubles[0]


def test_a_grader_that_has_given_is_known_after_a_resumption() -> None:
    def learner() -> RewardLearner:
        requests = Requests(Policy(FakeSampler()))
        return RewardLearner(
            plan=Plan(base_model="tiny"),
            learner=Grpo(),
            player=Player(lambda: OneAnswer(by_length), PlainWords(), requests, AnswerLimits(), 2),
            policy=requests.policy,
            evidence=None,  # type: ignore[arg-type]
            watched=Watched(outage),
        )

    async def outage(answer: Answer, task: Task) -> Score:
        return Score(0.0, trouble="the judge is out") if answer.text == "out" else Score(1.0)

    before, after = learner(), learner()
    asyncio.run(before.watched(Answer("good"), task(1)))
    after.restore(before.state())
    asyncio.run(after.watched(Answer("out"), task(1)))
    after.watched.check()
    fresh = learner()
    asyncio.run(fresh.watched(Answer("out"), task(1)))
    with pytest.raises(NothingGraded, match="the judge is out"):
        fresh.watched.check()


def test_a_refused_key_ends_the_run_and_not_one_group() -> None:
    class Refused(FakeSampler):
        async def sample(self, prompt, num_samples, sampling_params):
            response = httpx.Response(401, request=httpx.Request("POST", "http://x"))
            raise tinker.AuthenticationError("revoked", response=response, body=None)

    async def go() -> None:
        collector = Collector(play=player(Refused(), AnswerLimits()).group, pace=Pace(), revision=lambda: 0)
        collector.add(0, [task(1, 3), task(1, 4)])
        try:
            await collector.take(0)
        finally:
            await collector.close()

    with pytest.raises(tinker.AuthenticationError, match="revoked"):
        asyncio.run(go())


def test_an_environment_that_breaks_is_a_failed_episode_and_is_closed() -> None:
    closed = []

    class Broken(Asking):
        async def step(self, answer: Answer) -> Step:
            raise ZeroDivisionError("in somebody's code")

        async def close(self) -> None:
            closed.append(self)

    group = play(FakeSampler(), AnswerLimits(), make=Broken)
    assert (group.rollouts, group.n_failed) == ((), 3)
    assert group.troubles == ("ZeroDivisionError: in somebody's code",)
    assert len(closed) == 3


@given(st.integers(1, 6), st.integers(4, 60), st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_no_more_is_asked_at_once_than_allowed(most: int, most_tokens: int, seed: int) -> None:
    sampler = FakeSampler(length=lambda prompt: 1 + prompt.length % 5, seed=seed)
    limits = AnswerLimits(most_tokens=5, piece=2)
    one = player(sampler, limits, size=2, make=Asking, most=most, most_tokens=most_tokens)

    async def both() -> list[Group]:
        return await asyncio.gather(*(one.group(task(1, n), n) for n in range(4)))

    groups = asyncio.run(both())
    assert [len(group.rollouts) for group in groups] == [2] * 4
    # A request larger than the bound is let in alone: here one of a group's two beginnings.
    assert sampler.most_open <= max(most, 2)
    assert sampler.most_tokens_open <= max(most_tokens, max(n * (len(p) + s.max_tokens) for p, n, s in sampler.asked))
    assert one.requests.n_open == one.requests.tokens_open == 0


PACES = st.builds(
    Pace,
    staleness=st.integers(0, 3),
    at_once=st.integers(1, 9),
    tries=st.integers(1, 2),
    overtaking=st.booleans(),
)


class Table:
    """Plays groups that take a random while and may break, and counts them."""

    def __init__(self, rng, breaks: bool) -> None:
        self.rng, self.breaks = rng, breaks
        self.tries: Counter[int] = Counter()
        self.n_open = self.most_open = 0

    async def play(self, name: int, number: int) -> Group:
        assert name == number
        self.tries[number] += 1
        self.n_open += 1
        self.most_open = max(self.most_open, self.n_open)
        for _ in range(self.rng.randrange(8)):
            await asyncio.sleep(0)
        self.n_open -= 1
        if self.breaks and self.rng.random() < 0.3:
            raise tinker.TinkerError("no luck")
        if self.breaks and self.rng.random() < 0.2:
            raise asyncio.CancelledError
        return Group(task(number), (object(),))  # type: ignore[arg-type]


async def all_steps(table: Table, pace: Pace, sizes: list[int]) -> list[list]:
    """As a run does it: the tasks of a step are added as early as they may begin."""
    revision, added, steps = 0, 0, []
    collector = Collector(table.play, pace, lambda: revision)
    for step in range(len(sizes)):
        while added < len(sizes) and added <= step + pace.staleness:
            collector.add(added, range(collector.n_added, collector.n_added + sizes[added]))
            added += 1
        steps.append(await collector.take(step))
        for _ in range(table.rng.randrange(6)):  # the step, beside which others are played
            await asyncio.sleep(0)
        revision += 1
    assert [collector.running, collector.finished, [*collector.waiting]] == [{}, [], []]
    return steps


@given(PACES, st.lists(st.integers(1, 5), max_size=8), st.randoms(use_true_random=False), st.booleans())
@settings(max_examples=200, deadline=None)
def test_every_task_ends_once_and_no_group_is_too_old(pace: Pace, sizes: list[int], rng, breaks: bool) -> None:
    table = Table(rng, breaks)
    steps = asyncio.run(asyncio.wait_for(all_steps(table, pace, sizes), 20))
    assert [len(step) for step in steps] == sizes
    assert sorted(one.number for step in steps for one in step) == [*range(sum(sizes))]
    for number, step in enumerate(steps):
        assert all(number - pace.staleness <= one.began <= number for one in step)
        assert [one.number for one in step] == sorted(one.number for one in step)
        assert pace.overtaking or {one.step for one in step} == {number}
        assert all(one.group.rollouts or table.tries[one.number] == pace.tries for one in step)
    assert table.most_open <= pace.at_once
    assert breaks or set(table.tries.values()) <= {1}


def test_with_staleness_the_next_step_is_played_beside_this_one_and_may_overtake() -> None:
    async def begun(overtaking: bool) -> list[int]:
        slow = asyncio.Event()

        async def play(name: str, number: int) -> Group:
            await (slow.wait() if name == "slow" else asyncio.sleep(0))
            return Group(task(number), (object(),))  # type: ignore[arg-type]

        collector = Collector(play, Pace(staleness=1, overtaking=overtaking), lambda: 0)
        collector.add(0, ["slow", "quick"])
        collector.add(1, ["quick", "quick"])
        taking = asyncio.ensure_future(collector.take(0))
        for _ in range(50):
            await asyncio.sleep(0)
        if not taking.done():
            slow.set()
        return [one.number for one in await taking]

    assert asyncio.run(begun(overtaking=True)) == [1, 2]
    assert asyncio.run(begun(overtaking=False)) == [0, 1]


def test_what_was_begun_is_given_up_at_the_end() -> None:
    async def forever(name: int, number: int) -> Group:
        await asyncio.Event().wait()
        raise AssertionError

    async def closed() -> Collector:
        collector = Collector(forever, Pace(at_once=2), lambda: 0)
        collector.add(0, range(9))
        await asyncio.sleep(0)
        assert len(collector.running) == 2
        await collector.close()
        return collector

    collector = asyncio.run(closed())
    assert [collector.running, [*collector.waiting]] == [{}, []]


@pytest.mark.parametrize("wrong", [{"staleness": -1}, {"at_once": 0}, {"tries": 0}])
def test_a_pace_is_checked(wrong: dict) -> None:
    with pytest.raises(ValueError, match="1 or more"):
        Pace(**wrong)


def steps_of_groups(overtaking: bool) -> list[list[int]]:
    """For each step of a run, for which steps the groups that it learns from were asked: one of four takes as long as
    three steps do."""

    async def go() -> list[list[int]]:
        revision, taken = 0, []

        async def play(name: int, number: int) -> Group:
            for _ in range(3 if number % 4 else 30):
                await asyncio.sleep(0)
            return Group(task(number), (object(),))  # type: ignore[arg-type]

        collector = Collector(play, Pace(staleness=4, overtaking=overtaking), lambda: revision)
        for step in range(12):
            for later in range(step + 4 if step else 0, step + 5):
                collector.add(later, range(4))
            taken.append(sorted(one.step for one in await collector.take(step)))
            for _ in range(10):
                await asyncio.sleep(0)
            revision += 1
        await collector.close()
        return taken

    return asyncio.run(asyncio.wait_for(go(), 20))


def test_groups_overtake_one_another_as_long_as_a_run_goes_on() -> None:
    late = steps_of_groups(overtaking=True)[5:]
    assert [own for number, own in enumerate(late, 5) if own == [number] * 4] == []
    assert steps_of_groups(overtaking=False) == [[number] * 4 for number in range(12)]

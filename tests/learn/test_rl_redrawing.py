"""Groups in which all earned the same are drawn anew, from other tasks, and the budget ends that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loreloop.cli.server import RunningServer
from loreloop.learn.environments.environment import OneAnswer
from loreloop.learn.examples import Task
from loreloop.learn.learners.from_rewards import Sampling, Ways, reward_learner
from loreloop.learn.learners.grpo import Grpo
from loreloop.learn.learners.redrawing import Batch, Redrawing, teaches_nothing
from loreloop.learn.rendering import renderer_of
from loreloop.learn.rewards.reward import Answer, Score
from loreloop.learn.rollouts.collect import Pace, Played
from loreloop.learn.rollouts.drawing import AnswerLimits
from loreloop.learn.rollouts.values import Group
from tests.learn.rollout_rig import rollout
from tests.learn.runs import plan, run_of, said


def group(*rewards: float) -> Group:
    return Group(None, tuple(rollout(reward=reward) for reward in rewards))


FLAT, VARIED, FAILED = group(1.0, 1.0), group(0.0, 1.0), Group(None, (), n_failed=2)


def batch(*groups: Group) -> list[Played]:
    return [Played(number, 0, 0, each) for number, each in enumerate(groups)]


def filled(
    most: int, played: list[Played], draw: Callable[[str], Group], tasks=("a", "b"), left=None
) -> tuple[Batch, list[int]]:
    numbers: list[int] = []

    async def play(task: str, number: int) -> Group:
        numbers.append(number)
        return draw(task)

    return asyncio.run(Redrawing(most, tasks).filled(played, 3, play, Pace(), left)), numbers


def test_a_group_without_variance_gives_way_to_another() -> None:
    found, numbers = filled(8, batch(FLAT, VARIED, FAILED), lambda task: VARIED)
    assert [one.group for one in found.kept] == [VARIED, FAILED, VARIED]
    assert [one.group for one in found.left_out] == [FLAT]
    assert len(numbers) == 1


def test_the_budget_ends_it() -> None:
    found, numbers = filled(5, batch(FLAT, FLAT), lambda task: FLAT)
    assert len(numbers) == len({*numbers}) == 5
    assert len(found.kept) == 2
    assert len(found.left_out) == 5


def test_a_group_that_fails_takes_nobodys_place() -> None:
    found, numbers = filled(3, batch(FLAT), lambda task: FAILED)
    assert [one.group for one in found.kept] == [FLAT]
    assert [one.group for one in found.left_out] == [FAILED] * 3
    assert len({*numbers}) == 3
    drawn = iter([FAILED, VARIED])
    found, _ = filled(3, batch(FLAT), lambda task: next(drawn))
    assert [one.group for one in found.kept] == [VARIED]


def test_the_budget_of_tokens_ends_it_too() -> None:
    n_tokens = sum(each.n_sampled for each in FLAT.rollouts)
    for left, n_drawn in ((n_tokens, 0), (n_tokens + 1, 1), (3 * n_tokens, 2), (None, 5)):
        _, numbers = filled(5, batch(FLAT), lambda task: FLAT, left=left)
        assert len(numbers) == n_drawn


def test_without_a_budget_nothing_is_drawn() -> None:
    found, numbers = filled(0, batch(FLAT, VARIED), lambda task: VARIED)
    assert [one.group for one in found.kept] == [FLAT, VARIED]
    assert not numbers


@given(st.lists(st.sampled_from([FLAT, VARIED, FAILED]), max_size=6), st.integers(0, 9), st.data())
def test_a_batch_keeps_its_size_and_the_budget_holds(groups: list[Group], most: int, data: st.DataObject) -> None:
    found, numbers = filled(most, batch(*groups), lambda task: data.draw(st.sampled_from([FLAT, VARIED])))
    assert len(found.kept) == len(groups)
    assert len(found.left_out) == len(numbers) <= most
    flat_left = any(teaches_nothing(one.group) for one in found.kept)
    assert not flat_left or len(numbers) == most
    assert all(teaches_nothing(one.group) for one in found.left_out)


@pytest.mark.filterwarnings("ignore")
def test_a_step_learns_from_what_was_drawn_in_the_place_of_easy_tasks(server: RunningServer, tiny_folder) -> None:
    easy, useful = Task(said("say 1")), Task(said("say 2"))

    async def reward(answer: Answer, task: Task) -> Score:
        return Score(1.0 if task is easy else answer.n_tokens + len(answer.text) / 100)

    async def kind(plan_, clients):
        sampling = Sampling(group_size=4, limits=AnswerLimits(most_tokens=6))
        learner = await reward_learner(
            plan_, clients, renderer_of(tiny_folder), lambda: OneAnswer(reward), Ways(Grpo()), sampling
        )
        learner.redrawing = Redrawing(4, [useful])
        return learner

    ran = run_of(server, kind, plan(batch_size=2, steps=1), [easy, easy])
    metrics = ran.records[0].metrics
    assert metrics["train_redrawn"] == 2
    assert metrics["train_flat_groups"] == 0.5
    assert metrics["train_datums"] > 0

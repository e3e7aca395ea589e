"""Learners from rewards against a real server: rewards grow, runs go on where they were, and every figure is told."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import tinker

from loreloop.cli.server import RunningServer
from loreloop.learn.corrections import Correction
from loreloop.learn.environments.environment import OneAnswer, Step
from loreloop.learn.examples import Task
from loreloop.learn.learners.cispo import Cispo
from loreloop.learn.learners.distill import Distill
from loreloop.learn.learners.from_rewards import Sampling, Ways, reward_learner
from loreloop.learn.learners.grpo import Grpo
from loreloop.learn.learners.kl import KlBudget, KlPenalty
from loreloop.learn.learners.ppo import Ppo
from loreloop.learn.learners.reinforce import Reinforce
from loreloop.learn.learners.reinforce_loop import Bounds, RewardLearner
from loreloop.learn.rendering import Renderer, renderer_of
from loreloop.learn.rewards.reward import Answer, Score
from loreloop.learn.rollouts.collect import Pace
from loreloop.learn.rollouts.drawing import AnswerLimits
from loreloop.text.conversation import Turn
from tests.learn.rollout_rig import tensor
from tests.learn.runs import Kept, Ran, plan, run_of, said

# The SDK leaves its own background tasks to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore")

TASKS = [Task(said(f"say {n}")) for n in range(6)]
SAMPLING = Sampling(group_size=6, limits=AnswerLimits(most_tokens=6))


async def vowels(answer: Answer, task: Task) -> Score:
    """The share of letters that are an e or an o, which a random model says now and then."""
    share = sum(letter in "eo" for letter in answer.text) / max(1, len(answer.text))
    return Score(share, {"letters": len(answer.text)})


@pytest.fixture(scope="module")
def renderer(tiny_folder: Path) -> Renderer:
    return renderer_of(tiny_folder)


@pytest.fixture
def learn(server: RunningServer, renderer: Renderer) -> Callable[..., Ran]:
    def go(ways: Ways, sampling: Sampling = SAMPLING, *, reward=vowels, kept: Kept | None = None, **fields) -> Ran:
        more = {name: fields.pop(name) for name in ("held_out", "wish") if name in fields}
        made = plan(**{"batch_size": 3, "epochs": 1, "learning_rate": 5e-3, "schedule": "constant", **fields})
        learners: list[RewardLearner] = []

        async def kind(plan_, clients):
            learners.append(await reward_learner(plan_, clients, renderer, lambda: OneAnswer(reward), ways, sampling))
            return learners[0]

        if more.get("wish") == "own":
            more["wish"] = lambda: "pause" if learners and learners[0].is_spent else "go"
        return run_of(server, kind, made, TASKS, kept=kept, **more)

    return go


LEARNERS = {
    "grpo": Ways(Grpo()),
    "dapo": Ways(Grpo.dapo(6)),
    "cispo": Ways(Cispo()),
    "reinforce": Ways(Reinforce()),
    "icepop": Ways(Reinforce(Correction("icepop"))),
    "geometric": Ways(Grpo(correction=Correction("geometric"))),
    "ppo": Ways(Ppo(), value_rate=5e-3),
}


@pytest.mark.parametrize("name", LEARNERS)
def test_rewards_grow(learn, name: str) -> None:
    ran = learn(LEARNERS[name], epochs=8, held_out=TASKS[:2])
    rewards = [record.metrics["train_reward_mean"] for record in ran.records]
    first, last = sum(rewards[:3]) / 3, sum(rewards[-3:]) / 3
    assert last > first + 0.15, rewards
    metrics = ran.records[-1].metrics
    assert abs(metrics["train_kl_sampler"]) < 0.01
    assert metrics["train_staleness_max"] == 0
    assert metrics["valid_reward_mean"] > 0
    assert all(math.isfinite(value) for record in ran.records for value in record.metrics.values())


def test_with_staleness_the_next_steps_are_sampled_beside_this_one(learn) -> None:
    sampling = replace(SAMPLING, pace=Pace(staleness=2), limits=AnswerLimits(most_tokens=6, piece=2))
    ran = learn(Ways(Grpo(correction=Correction("truncate"))), sampling, epochs=4)
    ages = [record.metrics["train_staleness_max"] for record in ran.records]
    assert max(ages) <= 2
    assert max(ages[2:]) > 0
    assert [record.step for record in ran.records] == list(range(1, 9))


def test_a_run_goes_on_where_it_was(learn) -> None:
    whole, parted = Kept(), Kept()
    fields = {"epochs": 2, "save_every": 2}
    at_once = learn(Ways(Grpo()), kept=whole, **fields)
    asked = iter(["go"] * 2 + ["pause"])
    first = learn(Ways(Grpo()), kept=parted, wish=lambda: next(asked), **fields)
    assert (first.ending, len(first.records)) == ("paused", 2)
    second = learn(Ways(Grpo()), kept=parted, **fields)
    told = [record.metrics["train_reward_mean"] for record in (*first.records, *second.records)]
    assert told == [record.metrics["train_reward_mean"] for record in at_once.records]


def test_a_pull_holds_the_policy_and_a_spent_budget_ends_the_run(learn) -> None:
    free = learn(Ways(Grpo(), bounds=Bounds(kl=KlBudget(0.01))), epochs=4)
    held = learn(Ways(Grpo(kl=KlPenalty(2.0)), bounds=Bounds(kl=KlBudget(0.01))), epochs=4)
    assert held.records[-1].metrics["train_kl_reference"] < 0.7 * free.records[-1].metrics["train_kl_reference"]
    assert held.records[-1].metrics["train_kl_strength"] != 2.0
    ended = learn(Ways(Grpo(), bounds=Bounds(kl=KlBudget(0.001, most=0.002))), epochs=8, wish="own")
    assert ended.ending == "paused"
    assert 0 < len(ended.records) < 16
    ended = learn(Ways(Grpo(), bounds=Bounds(most_tokens=100)), epochs=8, wish="own")
    assert ended.ending == "paused"


def test_a_grader_that_fails_costs_its_own_answers_only(learn) -> None:
    async def moody(answer: Answer, task: Task) -> Score:
        if task is TASKS[0]:
            return Score(0.0, trouble="the grader gave NaN")
        if task is TASKS[1]:
            raise RuntimeError("the grader broke")
        return await vowels(answer, task)

    ran = learn(Ways(Grpo()), reward=moody)
    assert sum(record.metrics["train_ungraded"] for record in ran.records) == 6
    assert sum(record.metrics["train_failed"] for record in ran.records) == 6
    assert sum(record.metrics["train_datums"] for record in ran.records) > 0


class Twice(OneAnswer):
    """Asks a second time, and rewards both answers."""

    async def step(self, answer: Answer) -> Step:
        step = await super().step(answer)
        self.n = getattr(self, "n", 0) + 1
        return replace(step, turns=(Turn("user", "and again?"),), done=self.n == 2)


def test_episodes_of_several_turns_are_learned_from_their_own_tokens_alone(
    server: RunningServer, renderer: Renderer
) -> None:
    sent: list[tinker.Datum] = []

    class Seen(Grpo):
        def datums(self, groups):
            data = super().datums(groups)
            sent.extend(data)
            return data

    async def kind(plan_, clients):
        return await reward_learner(plan_, clients, renderer, lambda: Twice(vowels), Ways(Seen()), SAMPLING)

    ran = run_of(server, kind, plan(batch_size=3, learning_rate=5e-3, epochs=6), TASKS)
    assert {record.metrics["train_turns"] for record in ran.records} == {2}
    rewards = [record.metrics["train_reward_mean"] for record in ran.records]
    assert sum(rewards[-3:]) > sum(rewards[:3])
    # At the first step sampler and trainer say the same of every learned token, so that rows lie as they were sampled.
    assert abs(ran.records[0].metrics["train_ratio_max"]) < 0.01
    shown = renderer.tokenizer.encode("\n<|im_start|>user\nand again?<|im_end|>\n<|im_start|>assistant\n")
    for datum in sent:
        targets, learned = tensor(datum, "target_tokens").tolist(), tensor(datum, "advantages") != 0
        place = next(i for i in range(len(targets)) if targets[i : i + len(shown)] == shown)
        assert not learned[place : place + len(shown)].any()
        # An answer that was cut off is ended by a token of ours.
        assert learned[place - 1] or (targets[place - 1] in renderer.stop and learned[place - 2])
        assert learned[place + len(shown) :].all()


def test_where_all_earn_the_same_nothing_is_learned(learn) -> None:
    async def same(answer: Answer, task: Task) -> Score:
        return Score(1.0)

    ran = learn(Ways(Grpo()), reward=same)
    assert [record.metrics["train_datums"] for record in ran.records] == [0, 0]
    assert [record.metrics["train_flat_groups"] for record in ran.records] == [1, 1]


def test_a_teacher_is_approached_and_may_be_the_reference(learn) -> None:
    kept = Kept()
    learn(Ways(Grpo()), epochs=8, kept=kept)
    teacher = kept.position.checkpoints[-1].path
    ran = learn(Ways(Grpo(kl=KlPenalty(0.01)), reference=teacher), epochs=1)
    assert ran.records[0].metrics["train_kl_reference"] > 0.05, "the run begins far from it"
    ran = learn(Ways(Distill(), teacher=teacher), epochs=8)
    rewards = [record.metrics["train_reward_mean"] for record in ran.records]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.1

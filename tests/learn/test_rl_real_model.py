"""The default model learns sums of one digit from rewards alone: by GRPO, and by PPO, whose second adapter has to learn
what an answer is worth meanwhile.

The other learners share GRPO's path, and differ in pure functions that are held to their formulas; they are compared at
length by `bench.learn_beside_cookbook`.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from loreloop.cli.server import RunningServer, running_server
from loreloop.config import Config
from loreloop.demo.questions import Question, one_digit
from loreloop.formats.adding import ensure
from loreloop.formats.catalog import Catalog
from loreloop.learn.environments.environment import OneAnswer
from loreloop.learn.examples import Task
from loreloop.learn.learners.from_rewards import Sampling, Ways, reward_learner
from loreloop.learn.learners.grpo import Grpo
from loreloop.learn.learners.ppo import Ppo
from loreloop.learn.rendering import Renderer, renderer_of
from loreloop.learn.rewards.reward import Answer, Score
from loreloop.learn.rollouts.drawing import AnswerLimits
from tests.learn.runs import plan, run_of, said

# The SDK leaves its own background tasks to the garbage collector.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

MODEL = "smollm2-135m"
STEPS, GROUPS = 10, 8


@pytest.fixture(scope="module")
def folder() -> Path:
    return ensure(Catalog(Config().data_path), MODEL).folder


@pytest.fixture(scope="module")
def real_server(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[RunningServer]:
    data = tmp_path_factory.mktemp("data")
    (data / "models").symlink_to(folder.parent)
    with running_server(str(data), ["--model", MODEL]) as server:
        yield server


@pytest.fixture(scope="module")
def renderer(folder: Path) -> Renderer:
    return renderer_of(folder)


def task(question: Question) -> Task:
    return Task(said(question.text), {"answer": question.answer})


async def right(answer: Answer, asked: Task) -> Score:
    numbers = re.findall(r"\d+", answer.text)
    return Score(float(bool(numbers) and numbers[-1] == asked.item["answer"]))


WAYS = {"grpo": Ways(Grpo(normalisation="tokens")), "ppo": Ways(Ppo(), value_rate=1e-3)}


@pytest.mark.parametrize("name", WAYS)
def test_sums_of_one_digit_are_learned(real_server: RunningServer, renderer: Renderer, name: str) -> None:
    tasks = [task(question) for question in one_digit(seed=1).train[: STEPS * GROUPS]]
    made = plan(
        base_model=MODEL,
        rank=32,
        train_unembed=False,
        batch_size=GROUPS,
        learning_rate=4e-4,
        final_share=0.5,
        steps=STEPS,
    )

    async def kind(plan_, clients):
        sampling = Sampling(group_size=8, limits=AnswerLimits(most_tokens=12))
        return await reward_learner(plan_, clients, renderer, lambda: OneAnswer(right), WAYS[name], sampling)

    ran = run_of(real_server, kind, made, tasks)
    rewards = [record.metrics["train_reward_mean"] for record in ran.records]
    assert sum(rewards[-4:]) / 4 > sum(rewards[:2]) / 2 + 0.3, rewards
    if name == "ppo":
        losses = [record.metrics["train_value_loss"] for record in ran.records]
        # Whoever knows no more than that a value is one of ten scores has log(10) nats, which are 2.3.
        assert losses[-1] < min(2.0, losses[0]), losses

"""From settings to learners: every way, and what does not fit together."""

import asyncio
import json
from pathlib import Path

import pytest

from loreloop.learn.advantages import Overlong
from loreloop.learn.corrections import Correction
from loreloop.learn.environments.calculator import Calculator
from loreloop.learn.environments.environment import OneAnswer
from loreloop.learn.examples import Task
from loreloop.learn.learners.cispo import Cispo
from loreloop.learn.learners.distill import Distill
from loreloop.learn.learners.grpo import Grpo
from loreloop.learn.learners.kl import KlPenalty
from loreloop.learn.learners.ppo import Ppo
from loreloop.learn.learners.reinforce import Reinforce
from loreloop.learn.played import Tools, environments_of, reward_of
from loreloop.learn.rewarded_methods import policy_learner, sampling_of, ways_of
from loreloop.learn.rewards.graders.grader import Means
from loreloop.learn.rewards.reward import Answer
from loreloop.learn.settings import (
    CispoSettings,
    DistillSettings,
    GrpoSettings,
    PpoSettings,
    ReinforceSettings,
    RewardSettings,
)
from loreloop.protocol.errors import BadRequest
from loreloop.text.conversation import Conversation, Turn

GRADER = {"type": "string_check", "name": "same", "input": "{{sample.output_text}}", "reference": "{{item.answer}}"}
GRADER["operation"] = "eq"
TASK = Task(Conversation((Turn("user", "2 + 2?"),)), {"answer": "4"})


@pytest.mark.parametrize(
    ("settings", "learner"),
    [
        (GrpoSettings(), Grpo(normalisation="tokens")),
        (GrpoSettings(correction="truncate"), Grpo(normalisation="tokens", correction=Correction("truncate"))),
        (
            GrpoSettings(
                clip_high=0.28, answer_tokens=100, overlong_buffer=20, correction="icepop", kl=0.1, kl_form="k3"
            ),
            Grpo(
                clip_high=0.28,
                normalisation="tokens",
                overlong=Overlong(100, 20),
                correction=Correction("icepop"),
                kl=KlPenalty(0.1, "k3"),
            ),
        ),
        (PpoSettings(lam=1.0, normalisation="answers"), Ppo(lam=1.0, normalisation="answers")),
        (CispoSettings(high=2.0), Cispo(high=2.0)),
        (ReinforceSettings(), Reinforce()),
        (ReinforceSettings(correction="geometric", scaled=True), Reinforce(Correction("geometric"), scaled=True)),
        (DistillSettings(teacher="tiny", reward_weight=0.5), Distill(reward=0.5)),
    ],
)
def test_settings_make_their_learner(settings: RewardSettings, learner: object) -> None:
    assert policy_learner(settings) == learner
    assert ways_of(settings).learner == learner


def test_bounds_and_sampling_are_those_of_the_settings() -> None:
    settings = PpoSettings(
        low=-1.0,
        high=2.0,
        value_rate=0.5,
        passes=3,
        kl_budget=0.1,
        kl_most=0.2,
        budget_tokens=9,
        staleness=2,
        piece=7,
        at_once=5,
        group_size=3,
        turns=4,
        temperature=0.5,
        overtaking=True,
        episode_tokens=99,
    )
    ways, sampling = ways_of(settings), sampling_of(settings)
    assert (ways.low, ways.high, ways.value_rate, ways.passes) == (-1.0, 2.0, 0.5, 3)
    assert ways.bounds.kl is not None
    assert (ways.bounds.kl.target, ways.bounds.kl.most, ways.bounds.most_tokens) == (0.1, 0.2, 9)
    assert (sampling.pace.staleness, sampling.pace.overtaking, sampling.most_requests) == (2, True, 5)
    limits = sampling.limits
    assert (limits.piece, limits.most_turns, limits.temperature, limits.most_episode_tokens) == (7, 4, 0.5, 99)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (GrpoSettings(kl_most=0.1), "--kl-budget as well"),
        (GrpoSettings(kl_budget=0.2, kl_most=0.1), "below --kl-budget"),
        (GrpoSettings(overlong_buffer=300), "--overlong-buffer"),
        (GrpoSettings(correction="icepop", correction_low=3.0), "--correction-low"),
        (PpoSettings(low=1.0), "--low"),
        (DistillSettings(), "--teacher"),
        (DistillSettings(teacher="tiny", kl=0.1), "leave --kl out"),
        # A budget multiplies the strength, and nothing times something is nothing.
        (GrpoSettings(kl_budget=0.1), "give --kl 0.01"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: RewardSettings, said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        ways_of(settings)


def test_a_grader_is_a_file_or_its_json(tmp_path: Path) -> None:
    file = tmp_path / "grader.json"
    file.write_text(json.dumps(GRADER))
    for grader in (str(file), json.dumps(GRADER)):
        reward = reward_of(GrpoSettings(grader=grader), Means())
        assert asyncio.run(reward(Answer("4"), TASK)).value == 1.0
        assert asyncio.run(reward(Answer("5"), TASK)).value == 0.0
    file.write_text("{")
    for grader, said in (
        (str(file), "is not JSON"),
        (str(tmp_path / "none.json"), "cannot be read"),
        (None, "--grader"),
    ):
        with pytest.raises(BadRequest, match=said):
            reward_of(GrpoSettings(grader=grader), Means())
    assert asyncio.run(reward_of(DistillSettings(), Means())(Answer("4"), TASK)).value == 0.0


def test_the_environment_is_that_of_the_tools() -> None:
    reward = reward_of(DistillSettings(), Means())
    assert isinstance(environments_of(GrpoSettings(), reward, Tools(Means()))(), OneAnswer)
    assert isinstance(environments_of(GrpoSettings(tools="calculator"), reward, Tools(Means()))(), Calculator)
    with pytest.raises(BadRequest, match="no sandbox"):
        environments_of(GrpoSettings(tools="python"), reward, Tools(Means()))

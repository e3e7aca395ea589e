"""An image environment end to end on a tiny vision model: pictures in rollouts and data, and a step of GRPO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import tinker

from loreloop.cli.server import RunningServer
from loreloop.learn.environments.shapes import Shapes, drawing, scene_of, shape_tasks
from loreloop.learn.learners.from_rewards import Sampling, Ways, reward_learner
from loreloop.learn.learners.grpo import Grpo
from loreloop.learn.learners.policy import ScoredGroup
from loreloop.learn.learners.reinforce_loop import RewardLearner
from loreloop.learn.rendering import renderer_of
from loreloop.learn.rewards.reward import Answer, Score
from loreloop.learn.rollouts.drawing import AnswerLimits
from loreloop.protocol.errors import BadRequest
from tests.learn.runs import Ran, plan, run_of

# The SDK leaves its own background tasks to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore")

TASKS = shape_tasks(4, seed=2)


class Spoken(Shapes):
    """A random model never names a shape, so that letters have to do; the rest is as it is."""

    def score(self, answer: Answer) -> Score:
        share = sum(letter in "eo" for letter in answer.text) / max(1, len(answer.text))
        return Score(share, super().score(answer).parts)


@dataclass(frozen=True)
class Recorded(Grpo):
    """GRPO that keeps what it gave."""

    given: list[tinker.Datum] = field(default_factory=list)

    def datums(self, groups: Sequence[ScoredGroup]) -> list[tinker.Datum]:
        data = super().datums(groups)
        self.given.extend(data)
        return data


def learned(server: RunningServer, model: str, learner: Grpo, **fields) -> Ran:
    folder: Path = server.data / "models" / model

    async def kind(plan_, clients) -> RewardLearner:
        sampling = Sampling(group_size=6, limits=AnswerLimits(most_tokens=6))
        return await reward_learner(plan_, clients, renderer_of(folder), Spoken, Ways(learner), sampling)

    made = plan(**{"base_model": model, "batch_size": 2, "learning_rate": 5e-3, "schedule": "constant", **fields})
    return run_of(server, kind, made, TASKS, held_out=TASKS[:1])


def test_a_step_learns_from_rollouts_with_their_pictures(seeing: RunningServer) -> None:
    learner = Recorded()
    ran = learned(seeing, "eyes", learner, epochs=1)
    first, last = (record.metrics for record in ran.records)
    assert (first["train_failed"], first["train_ungraded"], last["train_failed"]) == (0, 0, 0)
    assert first["train_datums"] > 0
    assert 0 <= last["valid_part_form"] <= 1
    # The trainer gives every token behind a picture the probability that it was drawn with.
    assert abs(first["train_kl_sampler"]) < 1e-3
    assert first["train_ratio_max"] < 1e-2
    drawn = {drawing(scene_of(task.item)) for task in TASKS}
    for datum in learner.given:
        (image,) = [chunk for chunk in datum.model_input.chunks if isinstance(chunk, tinker.types.ImageChunk)]
        assert image.data in drawn
        advantages = datum.loss_fn_inputs["advantages"].to_numpy()
        assert len(advantages) == datum.model_input.length
        assert not advantages[: image.length].any()


@pytest.mark.slow
def test_rewards_grow_on_pictures(seeing: RunningServer) -> None:
    ran = learned(seeing, "eyes", replace(Grpo(), normalisation="tokens"), epochs=8)
    rewards = [record.metrics["train_reward_mean"] for record in ran.records]
    assert sum(rewards[-3:]) > sum(rewards[:3]) + 0.3, rewards


def test_a_model_of_text_refuses_them_by_name(seeing: RunningServer) -> None:
    with pytest.raises(BadRequest, match="This model reads text only"):
        learned(seeing, "blind", Grpo(), epochs=1)

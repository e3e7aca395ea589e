"""The learned reward of a loop: it hears what every cycle hears, is kept in the loop's folder, and rewards answers.

Between the feeds and GRPO; which model learns is that model's own matter (`reward/`). Knows no training.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loreloop.learn.examples import Task
from loreloop.learn.loop.collecting import golden_prompts, newest_of, prompt_key
from loreloop.learn.loop.reward.events import Scored
from loreloop.learn.loop.reward.labels import KeptOut, labels_of
from loreloop.learn.loop.reward.linear import LinearReward
from loreloop.learn.rewards.reward import Answer, Reward, Score
from loreloop.protocol.episodes import Message, Person, Turn
from loreloop.protocol.feedback import Feedback

MOST = 5.0  # spreads of the reference set: beyond lies nothing that a reward has seen


@dataclass
class LearnedReward:
    """A linear reward with its folder. As a `Reward`, it takes an answer's prompt from the task's own line."""

    folder: Path
    model: LinearReward = field(default_factory=LinearReward)

    def __post_init__(self) -> None:
        self.model.load(self.folder)

    def hear(
        self,
        turns: Sequence[Turn],
        statements: Sequence[Feedback],
        deleted: Collection[Person],
        golden: frozenset[str],
    ) -> str:
        """Learns from what is new, forgets what was taken back and who was deleted; gives a sentence about it."""
        model, by_id = self.model, newest_of(turns)
        held_out = golden | golden_prompts(by_id, statements)

        def is_held_out(messages: Sequence[Message]) -> bool:
            return prompt_key(messages) in held_out

        found = labels_of(
            by_id.values(), statements, kept_out=KeptOut(deleted, is_held_out), since=model.version.data.last_number
        )
        voices = {f"{person.key_id}/{person.user}" for person in deleted} | {one.user for one in deleted if one.user}
        # Whoever is forgotten goes first, so that nothing new is learned beside what must not stay.
        model.forget(voices, found.withdrawn)
        version = model.update(found.events)
        model.save(self.folder)
        return f"The reward has heard {version.data.n_events} events of {version.data.n_persons} persons."

    async def __call__(self, answer: Answer, task: Task) -> Score:
        """The reward of an answer, in spreads of the reference set and within ±5."""
        messages = tuple(task.item.get("messages", ()))
        (score,) = self.model.score([Scored(messages, answer.text)])
        return Score(max(-MOST, min(MOST, score)), {"learned": score})


@dataclass(frozen=True)
class Both:
    """A learned reward and a grader, added: what people like, and what is right."""

    learned: Reward
    graded: Reward

    async def __call__(self, answer: Answer, task: Task) -> Score:
        """The sum of both, with each as a part; the trouble of the grader is that of the sum."""
        one, other = await self.learned(answer, task), await self.graded(answer, task)
        parts: dict[str, Any] = {"learned": one.value, "graded": other.value}
        return Score(one.value + other.value, parts, one.trouble or other.trouble)

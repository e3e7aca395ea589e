"""What every reward is: a function of an answer and of the task that it answers. Knows no grader in particular."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from loreloop.learn.examples import Task
from loreloop.text.conversation import MadeCall


@dataclass(frozen=True)
class Answer:
    """What a model said: its text without thoughts, its calls, and how many tokens it took."""

    text: str
    calls: tuple[MadeCall, ...] = ()
    thinking: str | None = None
    n_tokens: int = 0
    ended: bool = True  # False: cut off at the most tokens


@dataclass(frozen=True)
class Score:
    """A reward, with the parts that it was put together from by name. `trouble` says why a grader could give none;
    the value is then 0 and must not be learned from."""

    value: float
    parts: Mapping[str, float] = field(default_factory=dict)
    trouble: str | None = None


class Reward(Protocol):
    """Gives a score to one answer. Several may be asked at once."""

    async def __call__(self, answer: Answer, task: Task) -> Score:
        """The score of an answer to a task."""
        ...

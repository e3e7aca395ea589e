"""What an environment is: it asks, hears an answer, and says what comes back and what that earned.

An environment of one's own is a class with `reset` and `step`. It sees words and calls, never tokens, and lives for one
episode. Knows no client and no learner.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

from loreloop.learn.examples import Task
from loreloop.learn.rewards.reward import Answer, Reward
from loreloop.text.conversation import Conversation, Turn


@dataclass(frozen=True)
class Step:
    """What an answer led to. `turns` come back to the model, which answers again unless the episode is `done`.

    `reward` is this answer's; an episode's is the sum. `parts` name what it was put together from. With `trouble` no
    reward could be given, and nothing is learned from the episode.
    """

    turns: tuple[Turn, ...] = ()
    reward: float = 0.0
    parts: Mapping[str, float] = field(default_factory=dict)
    done: bool = True
    trouble: str | None = None


class Environment(ABC):
    """One episode. Whatever an instance keeps is the episode's own."""

    @abstractmethod
    async def reset(self, task: Task) -> Conversation:
        """What the model is asked first, with the tools that it may call."""

    @abstractmethod
    async def step(self, answer: Answer) -> Step:
        """What an answer led to."""

    async def cut_off(self, answer: Answer) -> Step:
        """What it earns beside that the model may not answer again, though the last step was not done: the episode's
        limits on turns or tokens are reached. Nothing, unless an environment says otherwise."""
        return Step()

    async def close(self) -> None:
        """Called at the end, however the episode ended."""
        return


class OneAnswer(Environment):
    """A task and a reward: the environment of whoever brings prompts and a grader."""

    def __init__(self, reward: Reward) -> None:
        self.reward = reward
        self.task = Task(Conversation(()))

    async def reset(self, task: Task) -> Conversation:
        """The task's own prompt."""
        self.task = task
        return task.prompt

    async def step(self, answer: Answer) -> Step:
        """The reward of the answer, which ends the episode."""
        score = await self.reward(answer, self.task)
        return Step(reward=score.value, parts=score.parts, trouble=score.trouble)

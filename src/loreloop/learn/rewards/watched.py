"""A reward that remembers why it could not be given, so that a run whose grader never gives one ends with its words.

Knows no grader in particular, and neither commands nor jobs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from loreloop.learn.breakdowns import NothingGraded
from loreloop.learn.examples import Task
from loreloop.learn.rewards.reward import Answer, Reward, Score

MOST_TROUBLES = 16  # in a row without any reward: the grader is then not asked again


@dataclass
class Watched:
    """A reward that gives up where it never is given."""

    reward: Reward
    names: Mapping[int, str] = field(default_factory=dict)  # of examples, by the identity of their fields
    n_given: int = 0
    n_troubles: int = 0
    first: str = ""

    async def __call__(self, answer: Answer, task: Task) -> Score:
        """The score of an answer to a task."""
        if not self.n_given and self.n_troubles >= MOST_TROUBLES:
            # Each further answer might take as long as the sandbox lets it.
            return Score(0.0, trouble=self.first)
        score = await self.reward(answer, task)
        if score.trouble is None:
            self.n_given += 1
        else:
            self.n_troubles += 1
            name = self.names.get(id(task.item))
            self.first = self.first or (f"{name}: {score.trouble}" if name else score.trouble)
        return score

    def check(self) -> None:
        """NothingGraded where no answer at all could be graded."""
        if self.n_troubles and not self.n_given:
            raise NothingGraded(f"The grader gave no reward to any of {self.n_troubles} answers. {self.first}")

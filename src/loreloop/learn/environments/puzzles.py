"""Tasks of the `reasoning-gym` package by their names, with its own scores as rewards.

The package makes tasks out of a seed, as many as are wanted, and brings a verifier for each kind. It is the extra
`puzzles`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from loreloop.learn.examples import Task
from loreloop.learn.rewards.reward import Answer, Score
from loreloop.protocol.errors import BadRequest
from loreloop.text.conversation import Conversation, Turn

NOTE = "\nEnd with a line that holds the answer alone, between <answer> and </answer>."
MARKS = ("<answer>", "</answer>")


@dataclass(frozen=True)
class Puzzles:
    """Tasks of one kind, such as `chain_sum` or `leg_counting`. `settings` are those of the kind's own configuration.
    `malformed` is what an answer without its marks earns at most."""

    name: str
    n: int
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    malformed: float = 0.0

    def __post_init__(self) -> None:
        gym = _gym()
        known = sorted(gym.factory.DATASETS)
        if self.name not in known:
            raise BadRequest(f"reasoning-gym has no tasks named {self.name!r}; it has {', '.join(known)}.")
        made = gym.create_dataset(self.name, size=self.n, seed=self.seed, **self.settings)
        object.__setattr__(self, "made", made)

    def tasks(self) -> list[Task]:
        """The tasks in their order, each with its place in `item`."""
        made = vars(self)["made"]
        return [
            Task(Conversation((Turn("user", made[place]["question"] + NOTE),)), {"puzzle": place})
            for place in range(self.n)
        ]

    async def __call__(self, answer: Answer, task: Task) -> Score:
        """The package's own score of what stands between the marks."""
        made = vars(self)["made"]
        said = _marked(answer.text)
        value = float(made.score_answer(answer.text.strip() if said is None else said, made[task.item["puzzle"]]))
        return Score(value if said is not None else min(value, self.malformed), {"form": float(said is not None)})


def _marked(text: str) -> str | None:
    """What stands between the last two marks; None where they are missing."""
    _before, mark, rest = text.rpartition(MARKS[0])
    inside, end, _ = rest.partition(MARKS[1])
    return inside.strip() if mark and end else None


def _gym() -> Any:
    try:
        return importlib.import_module("reasoning_gym")
    except ImportError as error:
        raise BadRequest(
            "Tasks by name need the package reasoning-gym: install loreloop with its extra `puzzles`."
        ) from error

"""Every example of a job is looked at before its first step: whether the model's template takes it, and its window
holds it. What cannot be learned from is told by its number, before anything was spent on the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tinker

from loreloop.learn.examples import Demonstration, Mark, Preference, Task
from loreloop.learn.jobs.worker import JobFailed, Orders
from loreloop.learn.rendering import Renderer
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.jobs import JobError


@dataclass(frozen=True)
class Looked:
    """Looks at examples for one model, whose `window` is in tokens (None: not known), as long as the job is not told to
    stop."""

    renderer: Renderer
    window: int | None
    orders: Orders

    def at(self, examples: Sequence[Any], field: str) -> None:
        """JobFailed for the first example that cannot be learned from; `field` names the file in the request."""
        for number, example in enumerate(examples, 1):
            if self.orders.wish != "go":
                return
            try:
                n_tokens = self._longest(example)
            except BadRequest as error:
                raise _refused(field, f"Example {number}: {error.message}") from None
            if self.window is not None and n_tokens > self.window:
                raise _refused(
                    field, f"Example {number} has {n_tokens} tokens, and the model's window holds {self.window}."
                )

    def _longest(self, example: Any) -> int:
        """The number of tokens of an example's longest part, at least 1 of which must be learned."""
        match example:
            case Demonstration():
                return self._tokens(self.renderer.demonstrations(example))
            case Preference(prompt, chosen, rejected):
                return max(self._tokens(self.renderer.going_on(prompt, each)) for each in (chosen, rejected))
            case Mark(prompt, answer):
                return self._tokens(self.renderer.going_on(prompt, answer))
            case Task(prompt):
                return self.renderer.prompt(prompt).length + 1
        raise TypeError(f"{type(example).__name__} is no example")

    def _tokens(self, data: Sequence[tinker.Datum]) -> int:
        if not data:
            raise BadRequest("nothing of it is learned: no answer of the assistant has a weight above 0.")
        return max(datum.model_input.length for datum in data)


def _refused(field: str, message: str) -> JobFailed:
    return JobFailed(JobError("invalid_training_data", message, field))

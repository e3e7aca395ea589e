"""A run that breaks off for no fault of its examples has an error of its own as a job."""

from __future__ import annotations

import asyncio
import math
from types import SimpleNamespace
from typing import Any

import pytest

from loreloop.learn.breakdowns import LossDiverged, NothingGraded, NothingSampled, StepUngraded
from loreloop.learn.jobs.work import broken
from loreloop.learn.runner import Run
from tests.learn.runs import plan


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (LossDiverged("x"), "training_diverged"),
        (NothingSampled("x"), "sampling_failed"),
        (StepUngraded("x"), "grader_failed"),
        (NothingGraded("x"), "invalid_grader"),
    ],
)
def test_none_of_them_is_laid_to_the_file(error: Any, code: str) -> None:
    assert broken(error).code == code


def test_a_loss_that_is_no_number_breaks_a_run_off() -> None:
    class Diverging:
        ahead = 0

        def restore(self, state: dict[str, Any]) -> None: ...

        def prepare(self, batch: Any, at: Any) -> None: ...

        async def step(self, batch: Any, at: Any) -> Any:
            async def metrics() -> dict[str, float]:
                return {"train_loss": math.nan}

            return metrics()

    class Progress:
        async def load(self) -> None: ...

    run: Run[Any] = Run(plan(epochs=1), SimpleNamespace(), Diverging(), Progress())  # type: ignore[arg-type]
    with pytest.raises(LossDiverged, match="train_loss is nan"):
        asyncio.run(run.over([1, 2, 3]))

"""A job's plan as an order for `learn/methods.py`, which a command of `loreloop train` makes of its options.

What OpenAI's API does not name follows the command's own defaults. Knows no client and no connection.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loreloop.learn.examples import Task
from loreloop.learn.files import read_file
from loreloop.learn.jobs.choose import METHODS as METHOD_NAMES
from loreloop.learn.jobs.worker import JobFailed
from loreloop.learn.methods import METHODS, Order
from loreloop.learn.plan import Plan
from loreloop.learn.rendering import Renderer
from loreloop.learn.rewards.graders.grader import Means
from loreloop.learn.settings import DpoSettings, GrpoSettings, KtoSettings, Settings, SftSettings
from loreloop.protocol.jobs import Assignment, JobError, JobPlan

SAVE_EVERY = 20  # steps: what a death costs at most
GROUP_SIZE = 8  # answers to a task, times the job's compute_multiplier


@dataclass(frozen=True)
class Reading:
    """What an order is made of, beside the job itself."""

    renderer: Renderer
    means: Means


def order_of(assignment: Assignment, reading: Reading) -> Order:
    """The order of a job. JobFailed where one of its files is gone."""
    job = assignment.plan
    return Order(
        method=METHOD_NAMES[job.kind],
        plan=plan_of(job),
        settings=settings_of(job),
        # As the chat routes do: in a thought that the template has begun no answer would ever stand.
        renderer=reading.renderer.without_thoughts() if job.answer_schema is not None else reading.renderer,
        examples=_examples(job, assignment.training_path, "training_file"),
        held_out=_examples(job, assignment.validation_path, "validation_file"),
        means=reading.means,
    )


def plan_of(job: JobPlan) -> Plan:
    """The runner's plan of a job."""
    return Plan(
        base_model=job.base_model,
        name="job",
        start=job.start_path,
        seed=job.seed,
        batch_size=job.hyperparameters["batch_size"],
        epochs=job.hyperparameters["n_epochs"],
        learning_rate=job.learning_rate,
        # Tasks come in the order of their file, which may go from easy ones to hard ones.
        shuffled=job.kind != "reinforcement",
        eval_every=job.hyperparameters.get("eval_interval", 0),
        save_every=SAVE_EVERY,
    )


def settings_of(job: JobPlan) -> Settings:
    """What the job's way to learn is told."""
    given = job.hyperparameters
    match job.kind:
        case "supervised":
            return SftSettings()
        case "dpo":
            return DpoSettings(beta=given["beta"])
        case "kto":
            return KtoSettings(beta=given["beta"])
        case "reinforcement":
            return GrpoSettings(
                grader=json.dumps(job.grader),
                # A single answer would have nothing to be compared with.
                group_size=max(2, round(GROUP_SIZE * given["compute_multiplier"])),
                answer_tokens=given["max_completion_tokens"],
                eval_samples=given["eval_samples"],
                budget_tokens=given.get("budget_tokens"),
            )


def _examples(job: JobPlan, path: str | None, field: str) -> Sequence[Any]:
    """The examples of a file; none where there is no file."""
    if path is None:
        return []
    if not Path(path).is_file():
        message = f"The file {Path(path).name} is gone; upload it anew."
        raise JobFailed(JobError("invalid_training_data", message, field))
    examples: Sequence[Any] = read_file(Path(path), METHODS[METHOD_NAMES[job.kind]].read)
    effort = job.hyperparameters.get("reasoning_effort", "default")
    return [_thinking(task, effort) for task in examples] if effort != "default" else examples


def _thinking(task: Task, effort: str) -> Task:
    """A task whose prompt tells the model's template how much to think."""
    settings = {**task.prompt.settings, "reasoning_effort": effort}
    return replace(task, prompt=replace(task.prompt, settings=settings))

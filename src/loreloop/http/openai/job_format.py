"""Fine-tuning jobs, their events and their checkpoints as OpenAI's clients read them. Pure."""

from __future__ import annotations

from typing import Any

from loreloop.protocol.jobs import ENDED, JobPlan
from loreloop.store.job_rows import EventRow, JobRow, TunedModel

# What a checkpoint tells of its metrics, by the names that steps give them.
CHECKPOINT_METRICS = {
    "train_loss": "train_loss",
    "train_mean_token_accuracy": "train_mean_token_accuracy",
    "valid_loss": "valid_loss",
    "valid_mean_token_accuracy": "valid_mean_token_accuracy",
    "full_valid_loss": "valid_loss",
    "full_valid_mean_token_accuracy": "valid_mean_token_accuracy",
}
LEGACY = ("n_epochs", "batch_size", "learning_rate_multiplier")


def job_json(row: JobRow, now: float) -> dict[str, Any]:
    """A job; `now` is in seconds since the epoch, for the estimate of its end."""
    plan = row.plan
    return {
        "id": row.id,
        "object": "fine_tuning.job",
        "created_at": int(row.created),
        "started_at": int(row.started) if row.started is not None else None,
        "finished_at": int(row.finished) if row.finished is not None else None,
        "estimated_finish": estimated_finish(row, now),
        "error": None if row.error is None else error_json(row),
        "fine_tuned_model": plan.name if row.status == "succeeded" else None,
        "hyperparameters": {name: plan.hyperparameters[name] for name in LEGACY if name in plan.hyperparameters},
        "method": method_json(plan),
        "model": plan.model,
        "organization_id": row.key_id,
        "result_files": [row.result_file] if row.result_file else [],
        "seed": plan.seed,
        "status": row.status,
        "trained_tokens": row.trained_tokens if row.status in ENDED else None,
        "training_file": plan.training_file,
        "validation_file": plan.validation_file,
        "integrations": [],
        "metadata": plan.metadata,
        "suffix": plan.suffix,
        # Not OpenAI's: how far it has come.
        "step": row.step,
        "total_steps": row.n_steps,
    }


def error_json(row: JobRow) -> dict[str, Any]:
    """Why a job failed."""
    assert row.error is not None
    return {"code": row.error.code, "message": row.error.message, "param": row.error.param}


def method_json(plan: JobPlan) -> dict[str, Any]:
    """The method with the values that were chosen, also where the request left them to the server."""
    inner: dict[str, Any] = {"hyperparameters": plan.hyperparameters}
    if plan.grader is not None:
        inner["grader"] = plan.grader
    if plan.response_format is not None:
        inner["response_format"] = plan.response_format
    # OpenAI has no third kind of preferences: marks on single answers are learned by its method `dpo`.
    name = "dpo" if plan.kind == "kto" else plan.kind
    return {"type": name, name: inner}


def request_json(plan: JobPlan) -> dict[str, Any]:
    """The request that asks for the same job again, with every value that was chosen for it."""
    asked = {
        "model": plan.model,
        "training_file": plan.training_file,
        "validation_file": plan.validation_file,
        "method": method_json(plan),
        "seed": plan.seed,
        "suffix": plan.suffix,
        "metadata": plan.metadata,
    }
    return {name: value for name, value in asked.items() if value is not None}


def estimated_finish(row: JobRow, now: float) -> int | None:
    """When a running job will end, in seconds since the epoch, by how long its steps took; None where that is not
    known."""
    if row.status != "running" or row.started is None or not row.step or not row.n_steps:
        return None
    return int(now + (now - row.started) / row.step * (row.n_steps - row.step))


def event_json(row: EventRow) -> dict[str, Any]:
    """One thing that happened to a job."""
    return {
        "id": row.id,
        "object": "fine_tuning.job.event",
        "created_at": int(row.created),
        "level": row.level,
        "type": row.kind,
        "message": row.message,
        "data": row.data,
    }


def checkpoint_json(made: TunedModel) -> dict[str, Any]:
    """A model as it was after an epoch."""
    metrics = {name: made.metrics[held] for name, held in CHECKPOINT_METRICS.items() if held in made.metrics}
    return {
        "id": made.id,
        "object": "fine_tuning.job.checkpoint",
        "created_at": int(made.created),
        "fine_tuned_model_checkpoint": made.name,
        "fine_tuning_job_id": made.job_id,
        "step_number": made.step,
        "metrics": {"step": made.step, **made.metrics, **metrics},
    }

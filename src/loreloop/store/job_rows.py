"""What the store hands out of uploaded files, fine-tuning jobs and the models that they make."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from loreloop.protocol.jobs import JobError, JobPlan, JobStatus, Level, Metrics, ResumePoint


class FileRow(msgspec.Struct, frozen=True):
    """An uploaded file, or a result. `contents` says what was found in it at its upload; `number` is the order of
    lists, 0 for a row that is not in the store yet."""

    id: str
    key_id: str
    name: str
    purpose: str
    n_bytes: int
    created: float
    expires: float | None = None
    contents: dict[str, Any] | None = None
    number: int = 0


class JobRow(msgspec.Struct, frozen=True):
    """A job: what it is to do, and how far it has come. `attempts` counts its starts since it last got ahead."""

    id: str
    key_id: str
    created: float
    plan: JobPlan
    status: JobStatus = "queued"
    started: float | None = None
    finished: float | None = None
    step: int = 0
    n_steps: int | None = None
    trained_tokens: int = 0
    error: JobError | None = None
    resume: ResumePoint | None = None
    attempts: int = 0
    result_file: str | None = None
    number: int = 0


class EventRow(msgspec.Struct, frozen=True):
    """Something that happened to a job; events of one job count from 1. A `metrics` event has them as its data."""

    job_id: str
    number: int
    created: float
    level: Level
    kind: Literal["message", "metrics"]
    message: str
    data: dict[str, Any]

    @property
    def id(self) -> str:
        """The name by which clients page."""
        return f"{self.job_id.replace('ftjob-', 'ftevent-')}-{self.number}"


class TunedModel(msgspec.Struct, frozen=True):
    """A model that a job has made: the last one, or as it was after an epoch."""

    name: str
    key_id: str
    job_id: str
    base_model: str
    step: int
    is_final: bool
    path: str
    state_path: str | None
    metrics: Metrics
    created: float
    number: int = 0

    @property
    def id(self) -> str:
        """The name by which clients page."""
        return f"{self.job_id.replace('ftjob-', 'ftckpt-')}-{self.step}"

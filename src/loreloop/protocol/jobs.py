"""Fine-tuning jobs as all rooms share them: what is to be done, how far it has come, and the messages between the HTTP
process and the worker that does it.

One frame is a 4-byte big-endian length and the MessagePack of one message, as on the engines' link. This file knows
neither sockets nor how anything is learned.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

JobKind = Literal["supervised", "dpo", "kto", "reinforcement"]
JobStatus = Literal["queued", "running", "paused", "succeeded", "failed", "cancelled"]
Level = Literal["info", "warn", "error"]
Metrics = dict[str, float]
ENDED: frozenset[str] = frozenset({"succeeded", "failed", "cancelled"})
TUNED = "ft:"  # how names of fine-tuned models begin


class JobError(msgspec.Struct, frozen=True):
    """Why a job failed; `param` is the field of the request, or the place in the file, that was at fault."""

    code: str
    message: str
    param: str | None = None


class JobPlan(msgspec.Struct, frozen=True):
    """What a job is to do, every blank filled. `model` is what was asked for; `base_model` the served base under it,
    and `start_path` the training state to begin from where `model` is no bare base.

    `hyperparameters` hold the chosen values, and `learning_rate` what they come to for this model. `response_format` is
    as it was asked for, and `answer_schema` the JSON schema that answers are held to by it, without
    what is `left_out`, in words.
    """

    model: str
    base_model: str
    kind: JobKind
    training_file: str
    validation_file: str | None
    hyperparameters: dict[str, Any]
    learning_rate: float
    seed: int
    name: str  # of the model that comes out
    start_path: str | None = None
    suffix: str | None = None
    grader: dict[str, Any] | None = None
    metadata: dict[str, str] | None = None
    response_format: dict[str, Any] | None = None
    answer_schema: dict[str, Any] | None = None
    left_out: tuple[str, ...] = ()

    def checkpoint_name(self, step: int) -> str:
        """The name of the model as it was after a step."""
        return f"{self.name}:ckpt-step-{step}"


class ResumePoint(msgspec.Struct, frozen=True):
    """Where a job can go on after `step` steps: paths of training checkpoints with the optimizer's state, by the names
    of the clients that they belong to. `position` is the runner's own record, which nobody else reads."""

    step: int
    states: dict[str, str]
    trained_tokens: int = 0
    position: dict[str, Any] = {}


# worker to HTTP process


class WorkerReady(msgspec.Struct, frozen=True, tag="ready"):
    """First frame of a worker's life: it takes jobs."""


class Began(msgspec.Struct, frozen=True, tag="began"):
    """The examples were read: so many steps lie before the job. `session_id` is the session that it trains in."""

    job_id: str
    n_steps: int
    session_id: str = ""


class Stepped(msgspec.Struct, frozen=True, tag="stepped"):
    """A step was made. `trained_tokens` counts from the job's beginning."""

    job_id: str
    step: int
    metrics: Metrics
    trained_tokens: int
    n_steps: int


class Said(msgspec.Struct, frozen=True, tag="said"):
    """Something that whoever follows the job should know."""

    job_id: str
    level: Level
    message: str


class Kept(msgspec.Struct, frozen=True, tag="kept"):
    """From now on the job can go on from here; the point before is not needed any more."""

    job_id: str
    point: ResumePoint


class Made(msgspec.Struct, frozen=True, tag="made"):
    """A model that can be asked: `path` holds weights to sample from, `state_path` the state to train on from."""

    job_id: str
    step: int
    path: str
    state_path: str | None
    metrics: Metrics
    is_final: bool


class JobOver(msgspec.Struct, frozen=True, tag="over"):
    """The worker has let go of a job: it is done, it failed, or it was told to stop."""

    job_id: str
    outcome: Literal["succeeded", "failed", "stopped"]
    error: JobError | None = None


FromWorker = WorkerReady | Began | Stepped | Said | Kept | Made | JobOver


# HTTP process to worker


class Assignment(msgspec.Struct, frozen=True, tag="assign"):
    """A job to do, with a key that means its owner as long as the job is in the worker's hands. Paths are of files on
    this machine."""

    job_id: str
    plan: JobPlan
    url: str
    secret: str
    training_path: str
    validation_path: str | None
    resume: ResumePoint | None


class StopJob(msgspec.Struct, frozen=True, tag="stop"):
    """Let go of a job after the step that runs; with `keep` leave a point from which it can go on."""

    job_id: str
    keep: bool


class Noted(msgspec.Struct, frozen=True, tag="noted"):
    """What a job has kept is written down: what was kept before may go."""

    job_id: str


ToWorker = Assignment | StopJob | Noted

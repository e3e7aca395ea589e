"""What the scheduler drives: one engine for one base model, called from one thread.

What takes long calls back meanwhile (`pause`), so that the loop can slip decode steps in: samples may be admitted,
advanced and cancelled in there, and nothing else. What a pause raises breaks a pass off, and comes behind all else.
User mistakes raise `protocol.errors.UserError`, per operation; nothing of a failed operation stays behind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from loreloop.protocol.link import EngineInfo, Meters, ModelSnapshot
from loreloop.protocol.sampling import PromptReport, SampleOp, StopReason, TopK
from loreloop.protocol.training import (
    CreateModel,
    Failure,
    ForwardBackward,
    LoadState,
    OptimStep,
    PassResult,
    SavedResult,
    SaveExternal,
    SaveSampler,
    SaveState,
    StepResult,
)


@dataclass(frozen=True)
class TokenEvent:
    """One sampled token. `finished` is set when the engine ends the sample (stop id or length)."""

    request_id: str
    sample_index: int
    token: int
    logprob: float
    finished: StopReason | None = None
    topk: TopK | None = None  # length 1
    filtered_logprob: float | None = None  # of the distribution that was drawn from
    routes: bytes | None = None  # of the positions computed since the sample's token before this one


@dataclass(frozen=True)
class PromptEvent:
    """The prompt of a request has been computed; sent once, before its first token."""

    request_id: str
    report: PromptReport
    cache_hit_tokens: int


@dataclass(frozen=True)
class SampleFailed:
    """This request alone cannot go on (an unreadable revision, say)."""

    request_id: str
    failure: Failure


SampleEvent = TokenEvent | PromptEvent | SampleFailed
Pause = Callable[[], None]


def no_pause() -> None:
    """For calls in which nobody has anything to do meanwhile."""


class HalfChanged(BaseException):
    """A fault of ours has stopped an engine amid a model's numbers. It must end, and the next one works the model out
    anew from what is on the disk. No `Exception`: whoever took it for a failed operation would go on with the rest."""


class Constraint(Protocol):
    """What may be drawn next, by a grammar that the engine does not know. May raise UserError."""

    def allowed(self) -> NDArray[np.bool_]:
        """(V,)"""
        ...

    def take(self, token: int) -> None:
        """Follows the text with the token that was drawn. May raise UserError."""
        ...

    def copy(self) -> Constraint:
        """Another text at the same place."""
        ...

    @property
    def over(self) -> bool:
        """Whether nothing can follow any more."""
        ...


Constrain = Callable[[str], Constraint]  # from a request's grammar; BadRequest where it is none


class Engine(Protocol):
    """What the scheduler may ask of an engine. Errors of users are raised as UserError, any other exception is the
    engine's own fault, and `HalfChanged` its end."""

    @property
    def info(self) -> EngineInfo:
        """What clients and the HTTP process must know of the engine; it never changes."""
        ...

    @property
    def meters(self) -> Meters:
        """Cheap enough to be asked for at any time."""
        ...

    # training state; each call finishes before it returns

    def create_model(self, op: CreateModel, pause: Pause = no_pause) -> None:
        """Makes a model that can be trained, fresh or from a saved folder. UserError where the rank or the folder is
        wrong."""
        ...

    def drop_model(self, model_id: str) -> None:
        """Forgets a model; one that is not there is no error."""
        ...

    def optim_step(self, op: OptimStep, pause: Pause = no_pause) -> StepResult:
        """One optimizer step with the gradients gathered so far; gives its metrics. UserError where they are not
        finite."""
        ...

    def save_state(self, op: SaveState, pause: Pause = no_pause) -> SavedResult:
        """Writes a checkpoint to train on from, with the optimizer's state; gives its size and checksum."""
        ...

    def save_sampler(self, op: SaveSampler, pause: Pause = no_pause) -> SavedResult:
        """Writes an adapter to sample from, and makes it known under its revision id."""
        ...

    def save_external(self, op: SaveExternal, pause: Pause = no_pause) -> SavedResult:
        """Writes an adapter in the form that peft loads, encrypted where recipients are named."""
        ...

    def load_state(self, op: LoadState, pause: Pause = no_pause) -> None:
        """Fills a live model from a checkpoint. UserError, with the model as it was, where it cannot be."""
        ...

    def train(self, passes: Sequence[ForwardBackward], pause: Pause) -> list[PassResult | Failure]:
        """Runs passes of one or several models as one packed batch; one result a pass, in order.

        Calls `pause` every some milliseconds; what it raises breaks the batch off.
        """
        ...

    def snapshot(self, folder: str, plan_no: int, pause: Pause = no_pause) -> list[ModelSnapshot]:
        """Writes every model changed since its last snapshot; `next_seq_id` is left 0 for the caller to fill in."""
        ...

    def restore(self, snapshot: ModelSnapshot) -> None:
        """Takes a model in from a snapshot. ServerError where the snapshot is gone or damaged."""
        ...

    # sampling; between two steps anything above may be called

    def admit(self, op: SampleOp) -> bool:
        """Takes a request in, or says False: no room now, ask again after a step. Never False with nothing running."""
        ...

    def sample_step(self) -> list[SampleEvent]:
        """Advances every admitted sample by one token (or a chunk of prompt)."""
        ...

    def finish_sample(self, request_id: str, sample_index: int) -> None:
        """Ends one sample early (a stop string was completed)."""
        ...

    def cancel_sample(self, request_id: str) -> None:
        """Ends all samples of a request. No event of it comes afterwards."""
        ...

    def drop_revision(self, revision_id: str) -> None:
        """Forgets an adapter and what is cached of it; samples that run with it go on."""
        ...

    @property
    def sampling(self) -> bool:
        """Whether any admitted sample is unfinished."""
        ...

"""The worker of fine-tuning jobs: each in a thread of its own, as long as somebody hands them out.

How a job is done is a function that it is given, since the libraries behind that are large. Knows no socket.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, TypeAlias

from loreloop.protocol.errors import LoreloopError, UserError, outcome_of
from loreloop.protocol.jobs import Assignment, FromWorker, JobError, JobOver, Noted, StopJob, ToWorker, WorkerReady

LOG = logging.getLogger(__name__)
Send: TypeAlias = Callable[[FromWorker], None]


@dataclass
class Orders:
    """What a job that runs has heard: what to do next, and that what it keeps is `noted`."""

    wish: Literal["go", "pause", "cancel"] = "go"
    noted: threading.Event = field(default_factory=threading.Event)


Do: TypeAlias = Callable[[Assignment, Send, Orders], bool]  # whether the job came to its end, and was not stopped


class JobFailed(LoreloopError):
    """A job cannot go on; `error` says why, for whoever asked for it."""

    def __init__(self, error: JobError) -> None:
        super().__init__(error.message)
        self.error = error


class Worker:
    """`inbox` brings what the HTTP process says, None when it is gone; `send` never waits."""

    def __init__(self, inbox: queue.SimpleQueue[ToWorker | None], send: Send, do: Do) -> None:
        self.inbox, self.send, self.do = inbox, send, do
        self.orders: dict[str, Orders] = {}

    def run(self) -> None:
        """Takes jobs until nobody is left to hand them out. Those that run then go on from what was kept of them, in
        the next worker."""
        self.send(WorkerReady())
        while (message := self.inbox.get()) is not None:
            match message:
                case Assignment():
                    orders = self.orders[message.job_id] = Orders()
                    work = partial(self._work, message, orders)
                    threading.Thread(target=work, name=message.job_id, daemon=True).start()
                case StopJob(job_id, keep) if job_id in self.orders:
                    self.orders[job_id].wish = "pause" if keep else "cancel"
                case Noted(job_id) if job_id in self.orders:
                    self.orders[job_id].noted.set()

    def _work(self, assignment: Assignment, orders: Orders) -> None:
        outcome = outcome_of(partial(self.do, assignment, self.send, orders))
        job_id = assignment.job_id
        # Forgotten before the end is told, since the same job may be handed out again at once.
        del self.orders[job_id]
        if isinstance(outcome, Exception):
            LOG.error("%s failed", job_id, exc_info=None if isinstance(outcome, UserError | JobFailed) else outcome)
            self.send(JobOver(job_id, "failed", error_of(outcome)))
        else:
            self.send(JobOver(job_id, "succeeded" if outcome else "stopped"))


def error_of(error: Exception) -> JobError:
    """What went wrong, in words for whoever asked for the job."""
    match error:
        case JobFailed():
            return error.error
        case UserError():
            return JobError("invalid_training_data", error.message)
        case LoreloopError():
            return JobError("server_error", error.message)
    return JobError("server_error", f"{type(error).__name__}: {error}"[:2000])

"""The desk between those who ask for fine-tuning jobs and the worker that does them: hands out, notes, calls back.

Jobs wait in the store, so that a desk that is killed forgets nothing. What the worker holds is known here alone: when
its stream ends, its jobs go back into the queue. Knows no route, and not how anything is learned.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import secrets
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

from loreloop.config import Config
from loreloop.host.dispatcher import Dispatcher
from loreloop.host.job_traces import JobTraces
from loreloop.host.link import WorkerConnection
from loreloop.protocol.errors import Conflict, LoreloopError, NotFound
from loreloop.protocol.jobs import (
    Assignment,
    Began,
    FromWorker,
    JobError,
    JobOver,
    JobStatus,
    Kept,
    Made,
    Noted,
    Said,
    Stepped,
    StopJob,
    WorkerReady,
)
from loreloop.store import jobs, keys, tuned_models
from loreloop.store.job_rows import JobRow, TunedModel

MAX_ATTEMPTS = 5  # starts of a job without getting ahead
SUSPECT_ATTEMPTS = 2  # after so many it runs alone, so that no other job is blamed for the next death
LOG = logging.getLogger(__name__)


@dataclass
class _InHand:
    """A job that the worker has, and the secret that is its key for as long."""

    job: JobRow
    secret: str
    session_id: str = ""
    is_suspect: bool = False  # of killing its worker


class JobDesk:
    """One per HTTP process; lives on its event loop. `url` is where the worker reaches this server."""

    def __init__(self, config: Config, dispatcher: Dispatcher, url: str) -> None:
        self.config, self.dispatcher, self.store, self.url = config, dispatcher, dispatcher.store, url
        self.worker: WorkerConnection | None = None
        self.in_hand: dict[str, _InHand] = {}
        # Whoever waits holds the event; of jobs that nobody follows nothing is kept.
        self.changes: WeakValueDictionary[str, asyncio.Event] = WeakValueDictionary()
        self.assigning = asyncio.Lock()
        self.traces = JobTraces(dispatcher)

    # for routes

    def key_of(self, secret: str) -> str | None:
        """Whose key a secret stands for: the owner's of the job that the worker was handed with it."""
        held = self._held_by(secret)
        return held.job.key_id if held is not None else None

    def answer_schema(self, secret: str) -> dict[str, Any] | None:
        """The JSON schema that the answers of the job with this secret are held to; None where there is none."""
        held = self._held_by(secret)
        return held.job.plan.answer_schema if held is not None else None

    def _held_by(self, secret: str) -> _InHand | None:
        given = secret.encode()  # whatever letters came in a header
        found = (held for held in self.in_hand.values() if hmac.compare_digest(held.secret.encode(), given))
        return next(found, None)

    async def create(self, row: JobRow) -> JobRow:
        """Takes a job in; it begins when its turn comes."""
        made = await self.store.write(jobs.create, row, self.config.limits.jobs_per_key)
        await self._say(row.id, "info", f"Created fine-tuning job: {row.id}")
        if left_out := ", ".join(row.plan.left_out):
            await self._say(row.id, "warn", f"Left out of what the answers must satisfy: {left_out}.")
        await self.assign()
        return self.store.read(jobs.of_anyone, made.id)

    async def cancel(self, job_id: str) -> JobRow:
        """Ends a job for good; the worker lets go of it after the step that runs. Conflict where it has ended."""
        await self._stop(job_id, "cancelled", ("queued", "running", "paused"))
        if job_id not in self.in_hand:
            await self.traces.tidy(job_id)
        return self.store.read(jobs.of_anyone, job_id)

    async def pause(self, job_id: str) -> JobRow:
        """Lets a job rest where it is until it is resumed. Conflict where it neither runs nor waits."""
        await self._stop(job_id, "paused", ("queued", "running"))
        return self.store.read(jobs.of_anyone, job_id)

    async def resume(self, job_id: str) -> JobRow:
        """Puts a paused job back into the queue. Conflict where it is not paused."""
        await self._change(job_id, "queued", ("paused",), "The job was resumed.")
        await self.assign()
        return self.store.read(jobs.of_anyone, job_id)

    def change_of(self, job_id: str) -> asyncio.Event:
        """Set when something next happens to a job. Ask for it before looking, so that nothing is missed."""
        return self.changes.setdefault(job_id, asyncio.Event())

    # the worker

    async def serve_worker(self, connection: WorkerConnection) -> None:
        """One worker's life, from its first message to the end of its stream."""
        if self.worker is not None:
            # Of a worker whose end was not noticed yet: this one takes over what it had.
            self.worker.close()
            self.worker = None
            await self._take_back()
        self.worker = connection
        try:
            async for message in connection.messages():
                if self.worker is not connection:
                    break  # the jobs of which it speaks are another worker's by now
                await self._handle(message)
        except LoreloopError as error:
            # Such as a full disk: what the worker tells cannot be noted, so it must not go on as if it were.
            LOG.error("the worker of jobs is let go, since what it told could not be noted: %s", error)
        finally:
            # A worker that is not heard any more sees the end of its stream, ends, and is started anew.
            connection.close()
            if self.worker is connection:
                self.worker = None
                await self._take_back()

    async def recover(self) -> None:
        """Puts back what is told to run and that nobody has in hand, as after a death of this process: it goes on from
        where it was kept last. Of what has ended, takes away what only a resumption needed."""
        for job in self.store.read(jobs.in_status, "running"):
            if job.id not in self.in_hand:
                await self._requeue(job.id)
        for job in self.store.read(jobs.with_leftovers):
            if job.id not in self.in_hand:
                await self.traces.tidy(job.id)

    async def assign(self) -> None:
        """Hands out waiting jobs while the worker has room: those of keys with the fewest in hand first."""
        async with self.assigning:
            while self.worker is not None and len(self.in_hand) < self.config.limits.running_jobs:
                waiting = [job for job in self.store.read(jobs.waiting) if job.id not in self.in_hand]
                if not waiting:
                    return
                held = Counter(each.job.key_id for each in self.in_hand.values())
                # The list is in the order of arrival, and the first of several least ones is taken.
                job = min(waiting, key=lambda job: held[job.key_id])
                if not self._may_run_beside(job):
                    return
                await self._hand_out(job, self.worker)

    def _may_run_beside(self, job: JobRow) -> bool:
        """Whether a job can run beside those in hand. One that was in hand when workers died runs alone until it gets
        ahead, so that a job that kills its worker ruins no other one."""
        suspected = _is_suspect(job) or any(held.is_suspect for held in self.in_hand.values())
        return not self.in_hand or not suspected

    async def _hand_out(self, job: JobRow, worker: WorkerConnection) -> None:
        refused = self._refusal(job)
        if refused is not None:
            await self._fail(job.id, refused)
            return
        held = _InHand(job, f"tml-job-{secrets.token_urlsafe(32)}", is_suspect=_is_suspect(job))
        self.in_hand[job.id] = held
        is_sent = False
        try:
            await self.store.write(jobs.took, job.id, job.attempts + 1)
            job = await self.store.write(jobs.go_back, job.id)
            await self._change(job.id, "running", ("queued",), _beginning(job))
            self._send(worker, held, job)
            is_sent = True
        except (Conflict, NotFound):
            # Cancelled or paused meanwhile. Whoever did that was told; who asked for the turn has no part in it.
            await self.store.write(jobs.took, job.id, job.attempts)
            await self.traces.tidy(job.id)
        finally:
            # A place that nobody works at would be lost until the worker dies.
            if not is_sent and self.in_hand.get(job.id) is held:
                del self.in_hand[job.id]

    def _send(self, worker: WorkerConnection, held: _InHand, job: JobRow) -> None:
        files, plan = self.dispatcher.files, job.plan
        worker.send(
            Assignment(
                job_id=job.id,
                plan=plan,
                url=self.url,
                secret=held.secret,
                training_path=str(files.upload(plan.training_file)),
                validation_path=str(files.upload(plan.validation_file)) if plan.validation_file else None,
                resume=job.resume,
            )
        )

    def _refusal(self, job: JobRow) -> JobError | None:
        """Why a job cannot begin, where that is so."""
        if job.attempts >= MAX_ATTEMPTS:
            message = f"The worker died {job.attempts} times at this job before it got ahead; it is given up."
            return JobError("server_error", message)
        if self.store.read(keys.active, job.key_id, time.time()) is None:
            return JobError("key_revoked", "The key that asked for this job is not valid any more.")
        if job.plan.base_model not in self.dispatcher.engines:
            served = ", ".join(self.dispatcher.engines)
            message = f"The base model {job.plan.base_model!r} is not served any more; this server has {served}."
            return JobError("model_not_found", message, "model")
        return None

    async def _handle(self, message: FromWorker) -> None:
        if isinstance(message, WorkerReady):
            await self.recover()
            await self.assign()
            return
        held = self.in_hand.get(message.job_id)
        if held is None:
            return  # of a job that was deleted meanwhile
        match message:
            case Began(job_id, n_steps, session_id):
                held.session_id = session_id
                await self.store.write(jobs.began, job_id, n_steps)
            case Stepped():
                await self._stepped(message)
            case Said(job_id, level, text):
                await self.store.write(jobs.say, job_id, level, text, time.time())
            case Kept(job_id, point):
                before = await self.store.write(jobs.kept, job_id, point)
                if self.worker is not None:
                    self.worker.send(Noted(job_id))
                await self.traces.drop_state(held.job.key_id, before)
                await self._cleared(held)
            case Made():
                await self._made(held, message)
            case JobOver(job_id, outcome, error):
                await self._over(held, outcome, error)
        self._tell(message.job_id)

    async def _stepped(self, made: Stepped) -> None:
        await self.store.write(
            jobs.stepped, made.job_id, made.step, made.metrics, trained_tokens=made.trained_tokens, now=time.time()
        )
        self.dispatcher.observers.happenings.note("job", made.job_id, f"step {made.step}")

    async def _made(self, held: _InHand, made: Made) -> None:
        job = self.store.read(jobs.of_anyone, made.job_id)
        if job.status == "cancelled":
            return  # it was told so, and its last model would come as a surprise
        name = job.plan.name if made.is_final else job.plan.checkpoint_name(made.step)
        model = TunedModel(
            name=name,
            key_id=job.key_id,
            job_id=job.id,
            base_model=job.plan.base_model,
            step=made.step,
            is_final=made.is_final,
            path=made.path,
            state_path=made.state_path,
            metrics=made.metrics,
            created=time.time(),
        )
        replaced = await self.store.write(tuned_models.add, model)
        # Of an attempt that was broken off behind it; the weights of this one are the same, made anew.
        if replaced is not None and replaced.path != model.path:
            await self.traces.drop(job.key_id, replaced.path)
        what = "New fine-tuned model created" if made.is_final else f"Checkpoint created at step {made.step}"
        await self._say(job.id, "info", f"{what}: {name}")

    async def _over(self, held: _InHand, outcome: str, error: JobError | None) -> None:
        job_id = held.job.id
        with contextlib.suppress(Conflict, NotFound):  # it was cancelled, paused, or swept at this very moment
            if outcome == "failed":
                await self._fail(job_id, error or JobError("server_error", "The worker gave no reason."))
            elif outcome == "succeeded":
                await self.traces.succeed(held.job)
                await self._say(job_id, "info", "The job has successfully completed")
        # Only now, since the key of the job must hold as long as the worker may use it.
        self.in_hand.pop(job_id, None)
        # The worker let go of it alive, however often it did.
        await self.store.write(jobs.took, job_id, 0)
        await self.traces.end_session(held.job.key_id, held.session_id)
        await self.traces.tidy(job_id)
        await self.assign()

    async def _take_back(self) -> None:
        """The worker is gone: what it had in hand waits for the next one."""
        lost, self.in_hand = self.in_hand, {}
        for job_id, held in lost.items():
            await self.traces.end_session(held.job.key_id, held.session_id)
            try:
                await self._requeue(job_id)
            except (Conflict, NotFound):  # it ends, rests or waits already
                await self.traces.tidy(job_id)
        await self.assign()

    async def _cleared(self, held: _InHand) -> None:
        """A suspect has got ahead: others may run beside it again."""
        if held.is_suspect:
            held.is_suspect = False
            await self.assign()

    async def _requeue(self, job_id: str) -> None:
        job = await self.store.write(jobs.go_back, job_id, only_from=jobs.RUNNING)
        text = f"The job was interrupted, and goes on from step {job.step}."
        await self._change(job_id, "queued", ("running",), text)

    async def _fail(self, job_id: str, error: JobError) -> None:
        """Conflict where it was cancelled meanwhile."""
        await self.store.write(jobs.fail, job_id, error, time.time())
        await self._say(job_id, "error", f"The job failed: {error.message}")

    async def _stop(self, job_id: str, status: JobStatus, only_from: tuple[JobStatus, ...]) -> None:
        held = self.in_hand.get(job_id)
        stops = held is not None and self.store.read(jobs.of_anyone, job_id).status in only_from
        # The worker is told first: it begins another step while the store writes.
        if stops and self.worker is not None:
            self.worker.send(StopJob(job_id, keep=status == "paused"))
        await self._change(job_id, status, only_from, f"The job was {status}.")

    async def _change(self, job_id: str, status: JobStatus, only_from: tuple[JobStatus, ...], text: str) -> None:
        await self.store.write(jobs.change_status, job_id, status, time.time(), only_from=only_from)
        await self._say(job_id, "info", text)

    async def _say(self, job_id: str, level: str, text: str) -> None:
        await self.store.write(jobs.say, job_id, level, text, time.time())  # type: ignore[arg-type]
        self.dispatcher.observers.happenings.note("job", job_id, f"{level}: {text}")
        self._tell(job_id)

    def _tell(self, job_id: str) -> None:
        if (event := self.changes.pop(job_id, None)) is not None:
            event.set()


def _is_suspect(job: JobRow) -> bool:
    return job.attempts >= SUSPECT_ATTEMPTS


def _beginning(job: JobRow) -> str:
    return f"The job goes on from step {job.resume.step}." if job.resume else "The job has begun."

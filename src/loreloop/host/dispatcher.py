"""The dispatcher of the HTTP process: routers hand operations in here and wait here for what became of them.

In: operations. Out: results, failures and token streams, each request exactly once. A training operation is journaled
when `submit` returns, and its result before anybody hears of it. Knows neither HTTP nor how an engine computes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from loreloop.config import Config
from loreloop.host.completions import Completions
from loreloop.host.engines import EngineGroup, EngineState
from loreloop.host.link import EngineConnection
from loreloop.host.meter import Meter
from loreloop.host.observers import Observers
from loreloop.host.tickets import Recording, Ticket
from loreloop.protocol.errors import Gone, NotFound, OutOfService, Unavailable
from loreloop.protocol.link import (
    BatchDone,
    BatchStarted,
    CancelSample,
    DropModel,
    DropRevision,
    EngineInfo,
    FromEngine,
    Hello,
    Leaving,
    Meters,
    ModelLost,
    OpEnd,
    Queues,
    Restore,
    Restored,
    SampleEnd,
    SnapshotRecorded,
    Snapshotted,
    Submit,
    ToEngine,
    Token,
    Tokens,
)
from loreloop.protocol.sampling import SampleOp, SampleResult
from loreloop.protocol.training import Failure, SkipSeq, TrainOp, all_ids
from loreloop.store import checkpoints, journal, replay, runs, samplers, sessions, spool
from loreloop.store.files import Files, delete, destroy
from loreloop.store.rows import Acceptance, DamagedOp, Outcome, SequenceRecord
from loreloop.store.store import Store

SESSION_OVER = Failure("user", "The session of this request has ended; open a new one and load a checkpoint.")
MAX_SAMPLE_DEATHS, MAX_OP_DEATHS = 3, 4  # a sample can be asked for again, a training operation is missed: it goes last
# Ten of the supervisor's longest pauses: a replica that can start at all has started by then.
REPLICA_SECONDS = 300.0
NO_REPLICA = Failure(
    "server",
    "The replica that drew this sample has died, and none has come back since; send it again later.",
    passing=True,
)
LOG = logging.getLogger(__name__)
CANCELLED = Failure("user", "The request was cancelled.")
STOPPING = "The server is stopping; send this again in a moment."
STOPPED = Failure("server", STOPPING)


class _Astray(Exception):
    """An engine's state is not what it was; nothing that it says may be taken any more."""


class Dispatcher:
    """One per HTTP process; lives on its event loop. `now` gives seconds since the epoch."""

    def __init__(
        self, config: Config, store: Store, base_models: tuple[str, ...], now: Callable[[], float] = time.time
    ) -> None:
        self.config, self.store, self.files, self.now = config, store, Files(store.folder), now
        self.engines = {name: EngineGroup(config.engine) for name in base_models}
        self.tickets: dict[str, Ticket] = {}
        self.meter, self.completions = Meter(store), Completions()
        self.observers = Observers.of(store, config)
        self.n_waiting_samples = 0
        self.ends: dict[str, asyncio.Event] = {}
        self.stopping = False

    # training

    async def submit(self, op: TrainOp, accepted: Acceptance) -> None:
        """Journals the operation and hands it to its engine. The same operation again changes nothing; BadRequest if
        another body came under the same (model, seq_id)."""
        if await self.store.write(journal.append, self.store.segments, op, accepted):
            self.observers.series.asked(op)
            self._send(accepted.base_model, Submit(op))

    async def skip(self, model_id: str, seq_id: int, request_id: str, base_model: str) -> None:
        """Marks a sequence id as used up by a refused request."""
        await self.submit(SkipSeq(model_id, seq_id, request_id), Acceptance(base_model, "refused"))

    async def outcome(self, request_id: str, hold_seconds: float) -> Outcome | None:
        """How a training operation ended, or None if it has not after a while. NotFound and Gone as in the journal."""
        found = self.store.read(journal.outcome, self.store.segments, request_id)
        if found is not None:
            return found
        # Several polls may wait for the same operation, and one event wakes them all.
        ended = self.ends.setdefault(request_id, asyncio.Event())
        try:
            async with asyncio.timeout(hold_seconds):
                await ended.wait()
        except TimeoutError:
            return None
        return self.store.read(journal.outcome, self.store.segments, request_id)

    def _release(self, request_id: str) -> None:
        if ended := self.ends.pop(request_id, None):
            ended.set()

    # sampling

    def sample(self, op: SampleOp, base_model: str, recording: Recording | None = None) -> bool:
        """Hands a request to its engine; False: this request id is known already. Unavailable when too many wait."""
        if op.request_id in self.tickets:
            return False
        if self.n_waiting_samples >= self.config.limits.waiting_samples:
            n = self.n_waiting_samples
            raise Unavailable(f"{n} samples are waiting before this one; send it again in a moment.", queue_position=n)
        ticket = Ticket(op=op, base_model=base_model, recording=recording)
        # Counting begins only after the message has left, so that an unknown model leaves nothing behind.
        self.engines[base_model].give(ticket)
        self.tickets[op.request_id] = ticket
        self.n_waiting_samples += 1
        return True

    def cancel(self, request_id: str) -> None:
        """Ends an unfinished sample; others are left alone."""
        ticket = self.tickets.get(request_id)
        if ticket and ticket.result is None:
            if ticket.engine is not None:
                _tell(self.engines[ticket.base_model].all[ticket.engine], CancelSample(request_id))
            self._end_sample(ticket, CANCELLED)

    async def sample_result(self, request_id: str, hold_seconds: float | None) -> SampleResult | Failure | None:
        """How a sample ended, or None if it has not after so long; Gone if nothing is known of it any more."""
        result = await self._ticket(request_id).wait(hold_seconds)
        if result is STOPPED:
            raise OutOfService(STOPPING)
        return result

    def stream(self, request_id: str) -> AsyncIterator[Token | SampleResult | Failure]:
        """A sample's tokens as they come and at last its result; Gone if nothing is known of it any more."""
        return self._ticket(request_id).stream()

    def forget(self, request_id: str) -> None:
        """Lets go of a sample whose result has been delivered for good; an unfinished one is cancelled."""
        self.cancel(request_id)
        self.tickets.pop(request_id, None)
        self.completions.forget(request_id)

    def forget_ended(self, request_id: str) -> None:
        """The same for a sample that has ended; one that has not goes on."""
        if (ticket := self.tickets.get(request_id)) and ticket.result is not None:
            self.forget(request_id)

    def _ticket(self, request_id: str) -> Ticket:
        ticket = self.tickets.get(request_id)
        if ticket is None:
            raise Gone(f"The sample {request_id!r} is not known (any more); ask for it again.")
        return ticket

    def _end_sample(self, ticket: Ticket, result: SampleResult | Failure) -> None:
        if ticket.result is None:
            self.n_waiting_samples -= 1
            group = self.engines[ticket.base_model]
            (group.take_back(ticket) or group.training).counts.sample_ended(ticket.op, result)
            now = self.now()
            self.meter.add(ticket.op.owner, ticket.spent(result, now))
            self.meter.charge(*ticket.charged(result, now))
            self.completions.ended(ticket.op.request_id, failed=isinstance(result, Failure))
            self.observers.happenings.sample_ended(ticket, result)
        ticket.end(result, self.now())

    # engines

    async def info(self, base_model: str) -> EngineInfo:
        """What the engine said of itself; waits until it has."""
        if base_model not in self.engines:
            raise NotFound(f"The model {base_model!r} is not served here; served are {', '.join(self.engines)}.")
        # The future is everybody's: without the shield, one client that leaves would cancel it for all.
        return await asyncio.shield(self.engines[base_model].info)

    def known_info(self, base_model: str) -> EngineInfo | None:
        """The same without waiting: None where the engine has said nothing yet, or never will."""
        info = self.engines[base_model].info
        return info.result() if info.done() and not info.exception() else None

    def is_up(self, base_model: str) -> bool:
        """Whether the training engine of a base model is connected now."""
        return self.engines[base_model].training.connection is not None

    async def serve_engine(self, connection: EngineConnection) -> None:
        """Carries one engine through its life: what it must know first, then whatever it says."""
        base_model, engine = "", None
        try:
            async for message in connection.messages():
                if isinstance(message, Hello):
                    base_model = message.base_model
                    engine = self.engines[base_model].all[message.replica]
                    await self._welcome(message, connection)
                elif engine is not None and engine.connection is connection:
                    await self._handle(base_model, engine, message)
        except (_Astray, Unavailable) as trouble:  # the second: the store cannot be read or written just now
            LOG.error("the engine of %s must begin anew: %s", base_model, trouble)
        finally:
            connection.close()
            if engine is not None and engine.connection is connection:
                await self._lost(base_model, engine)

    async def _welcome(self, hello: Hello, connection: EngineConnection) -> None:
        group = self.engines[hello.base_model]
        engine = group.all[hello.replica]
        if engine.connection is not None:
            # Another one has its place already, and its end was not noticed yet: what it had in hand is taken back now,
            # and it is not heard any more.
            engine.connection.close()
            await self._lost(hello.base_model, engine)
        if not group.info.done() and not hello.outside:  # another's server knows nothing of our images, say
            group.info.set_result(hello.info)
        if engine is group.training:
            await self._restore(hello.base_model, engine, connection)
        else:
            # No state is ever in a replica: it reads a revision's folder when it is first asked for it.
            connection.send(Restore((), (), 1))
            LOG.info("replica %d of %s is there", engine.number, hello.base_model)
        connection.send(Restored())
        # Only now: whatever was submitted before is part of what has just been sent, and must not be sent twice.
        engine.connected(connection)
        self.observers.happenings.note("engine", hello.base_model, f"engine {engine.number} is there")
        self._give_waiting(hello.base_model)

    async def _restore(self, base_model: str, engine: EngineState, connection: EngineConnection) -> None:
        # A damaged operation may make others unusable, so the state is read anew after each round until nothing is
        # damaged.
        while (state := self.store.read(replay.replay_state, self.store.segments, base_model)).damaged:
            for damaged in state.damaged:
                await self._end_damaged(damaged)
        connection.send(Restore(state.snapshots, state.batches, state.next_plan_no))
        for op in state.ops:
            # An operation that an engine has died with runs alone, so that the next death names the one to blame.
            connection.send(Submit(op, alone=op.request_id in engine.deaths))

    def _give_waiting(self, base_model: str) -> None:
        """Samples that no engine has go to those that are there."""
        for ticket in self.tickets.values():
            if ticket.base_model == base_model and ticket.result is None and ticket.engine is None:
                self.engines[base_model].give(ticket)

    async def _lost(self, base_model: str, engine: EngineState) -> None:
        """An engine has ended: what it had in hand is sent to others, or waits for the next."""
        group = self.engines[base_model]
        engine.disconnected()
        self.observers.happenings.note("engine", base_model, f"engine {engine.number} has ended")
        group.forget_prefixes(engine)
        for ticket in self.tickets.values():
            if (ticket.base_model, ticket.engine) == (base_model, engine.number):
                if not engine.leaving:
                    self._blame_sample(ticket)
                group.take_back(ticket)
        self._give_waiting(base_model)
        for ticket in self.tickets.values():
            if ticket.base_model == base_model:
                self._bound_wait(ticket)
        await self._blame(engine)

    def _bound_wait(self, ticket: Ticket) -> None:
        """What waits for a replica fails when none has come in time: whoever asked for it should hear of something."""
        if self.engines[ticket.base_model].waits_for_replica(ticket):
            asyncio.get_running_loop().call_later(REPLICA_SECONDS, self._overdue, ticket, ticket.n_given)

    def _overdue(self, ticket: Ticket, n_given: int) -> None:
        if ticket.n_given == n_given and self.engines[ticket.base_model].waits_for_replica(ticket):
            self._end_sample(ticket, NO_REPLICA)

    def _try_elsewhere(self, ticket: Ticket, engine: EngineState, failure: Failure) -> None:
        """A sampler outside could not draw this sample alone. That counts as a death, since the sample may be why; but
        our own engines do not die of what it cannot do, so that the one that trains may draw it too."""
        ticket.n_deaths += 1
        if ticket.n_deaths >= MAX_SAMPLE_DEATHS:
            self._end_sample(ticket, failure)
            return
        group = self.engines[ticket.base_model]
        ticket.avoided.add(engine.number)
        group.take_back(ticket)
        group.give(ticket)
        self._bound_wait(ticket)

    def _blame_sample(self, ticket: Ticket) -> None:
        """All samples of that moment are suspects, since nobody knows which of them was being computed. None is tried
        for ever."""
        ticket.n_deaths += 1
        if ticket.n_deaths >= MAX_SAMPLE_DEATHS:
            self._end_sample(ticket, _killer(MAX_SAMPLE_DEATHS))

    async def _blame(self, engine: EngineState) -> None:
        """Operations that an engine had in hand whenever it died may be what kills it; they are given up at last."""
        for request_id in [r for r, n_deaths in engine.deaths.items() if n_deaths >= MAX_OP_DEATHS]:
            del engine.deaths[request_id]
            if model_id := self.store.read(journal.executed_model, request_id):
                await self.lose_model(model_id, f"the engine died {MAX_OP_DEATHS} times executing {request_id} again")
            else:
                await self._give_up(request_id, _killer(MAX_OP_DEATHS))

    async def _end_damaged(self, op: DamagedOp) -> None:
        """Without an executed operation its model cannot be brought back; another one ends, and is skipped."""
        if op.executed:
            await self.lose_model(op.model_id, f"{op.request_id} would have to be executed again, and {op.reason}")
        else:
            LOG.error("%s is damaged and given up: %s", op.request_id, op.reason)
            reason = f"What was written down of {op.request_id} is damaged, and it was not executed: {op.reason}"
            await self._give_up(op.request_id, Failure("server", reason))

    async def _went_astray(self, base_model: str, end: OpEnd) -> None:
        """An executed operation that fails when it is executed again leaves its model in another state. What is wrong
        with the operation stays wrong; other trouble may pass, and another engine tries again: only so often, unless
        it is certain that the operation has no part in it."""
        failure = end.result
        model_id = self.store.read(journal.executed_model, end.request_id)
        if isinstance(failure, Failure) and failure.category == "user" and model_id:
            await self.lose_model(model_id, f"{end.request_id} fails when it is executed again: {failure.message}")
        else:
            if not (isinstance(failure, Failure) and failure.passing):
                self.engines[base_model].training.executing.add(end.request_id)
            raise _Astray(f"{end.request_id} had succeeded and fails when it is executed again: {failure}")

    async def _give_up(self, request_id: str, failure: Failure) -> None:
        await self.store.write(journal.give_up, self.store.segments, request_id, failure, self.now())
        self._release(request_id)

    async def _handle(self, base_model: str, engine: EngineState, message: FromEngine) -> None:
        match message:
            case BatchStarted(request_ids):
                engine.executing.update(request_ids)
            case BatchDone():
                await self._batch_done(base_model, engine, message)
            case ModelLost(model_id, reason):
                await self.lose_model(model_id, reason)
            case Snapshotted():
                await self.store.write(journal.record_snapshot, base_model, message)
                _tell(engine, SnapshotRecorded(message.plan_no))
            case Queues():
                engine.queues = message
            case Meters():
                engine.meters = message
            case Leaving():
                engine.leaving = True
            case Tokens(request_id, tokens):
                if ticket := self._drawn_by(engine, base_model, request_id):
                    ticket.add(tokens)
            case SampleEnd(request_id, result):
                if ticket := self._drawn_by(engine, base_model, request_id):
                    if engine.outside and isinstance(result, Failure) and result.passing:
                        self._try_elsewhere(ticket, engine, result)
                        return
                    await self._record(ticket, result)
                    self._end_sample(ticket, result)

    def _drawn_by(self, engine: EngineState, base_model: str, request_id: str) -> Ticket | None:
        """The sample, if it is still in this engine's hands: what one says that has lost it is not shown twice."""
        ticket = self.tickets.get(request_id)
        return ticket if ticket and (ticket.base_model, ticket.engine) == (base_model, engine.number) else None

    async def _batch_done(self, base_model: str, engine: EngineState, done: BatchDone) -> None:
        engine.executing.difference_update(end.request_id for end in done.ends)
        segments, now = self.store.segments, self.now()
        # The results are on disk before anybody is woken, so that no client hears of what a crash could take back.
        astray = await self.store.write(journal.record_batch, segments, base_model, done, now)
        engine.counts.batch_ended(done)
        self.observers.batch_ended(base_model, done, now)
        for end in done.ends:
            # An operation that has ended well was not what killed an earlier engine.
            engine.deaths.pop(end.request_id, None)
            self._release(end.request_id)
        for end in astray:
            await self._went_astray(base_model, end)

    async def _record(self, ticket: Ticket, result: SampleResult | Failure) -> None:
        if ticket.recording is None or isinstance(result, Failure):
            return
        prompt = all_ids(ticket.op.prompt)
        revision_id = ticket.op.revision.revision_id if ticket.op.revision else None
        records = [
            SequenceRecord(
                prompt=prompt,
                tokens=s.tokens,
                logprobs=s.logprobs,
                revision_id=revision_id,
                base_model=ticket.base_model,
                routes=s.routes,
            )
            for s in result.sequences
        ]
        session = self.config.session
        await self.store.write(
            spool.add,
            self.store.segments,
            ticket.recording.session_id,
            ticket.recording.sequence_ids,
            records,
            expires=self.now() + session.spool_ttl_seconds,
            max_bytes=session.spool_mib << 20,
        )

    def _send(self, base_model: str, message: ToEngine) -> None:
        """To the engine that trains. Without it nothing is lost: the next one is sent all that is unfinished."""
        _tell(self.engines[base_model].training, message)

    # ends

    def stop(self) -> None:
        """Whoever waits is answered now, since nothing more will come: polls with "not yet", the others with a failure
        that says to ask again."""
        self.stopping = True
        # Releasing changes the dictionary, so the loop goes over a copy.
        for request_id in list(self.ends):
            self._release(request_id)
        for ticket in self.tickets.values():
            self._end_sample(ticket, STOPPED)
        for group in self.engines.values():
            if not group.info.done():
                group.info.set_exception(OutOfService(STOPPING))
                group.info.exception()  # also where nobody waits

    async def close_session(self, session_id: str) -> None:
        """After a session has ended: its samples are cancelled, its models unloaded, its ephemeral adapters deleted."""
        id_prefix = f"{session_id}:"
        for request_id in [
            r for r, ticket in self.tickets.items() if r.startswith(id_prefix) and ticket.result is None
        ]:
            self.cancel(request_id)
        for run in self.store.read(runs.of_session, session_id):
            await self.drop_model(run.id)
        for sampler in self.store.read(samplers.of_session, session_id):
            if sampler.run_id and sampler.revision_id:
                self.drop_revision(sampler.revision_id)
        for folder in self.store.read(sessions.revisions_of, session_id):
            delete(Path(folder))

    async def drop_model(self, run_id: str) -> None:
        """Unloads a run's training state; its unfinished operations end as failures."""
        for base_model in self.engines:
            self._send(base_model, DropModel(run_id))
        files = await self.store.write(journal.end_model, self.store.segments, run_id, SESSION_OVER, self.now())
        for file in filter(None, files):
            Path(file).unlink(missing_ok=True)
        self._release_all(run_id)

    def _release_all(self, run_id: str) -> None:
        for request_id in [r for r in self.ends if r.startswith(f"{run_id}:")]:
            self._release(request_id)

    async def lose_model(self, run_id: str, reason: str) -> None:
        """Ends a run whose state cannot be restored: its operations end as failures that say why, and so does whatever
        is asked of it later. What it has saved, and the files of its state, are left alone."""
        LOG.error("the state of %s is lost: %s", run_id, reason)
        self.observers.happenings.note("failure", run_id, f"its state is lost: {reason}")
        for base_model in self.engines:
            self._send(base_model, DropModel(run_id))
        message = f"The state of {run_id} is lost: {reason}. Load its newest checkpoint in a new session."
        lost = Failure("server", message)
        await self.store.write(journal.lose_model, self.store.segments, run_id, lost, self.now())
        self._release_all(run_id)

    def drop_revision(self, revision_id: str) -> None:
        """Lets all engines forget an adapter whose files are going away."""
        for group in self.engines.values():
            for engine in group.all:
                _tell(engine, DropRevision(revision_id))

    async def delete_left_files(self) -> None:
        """Deletes the files of what was removed, unless something has been saved in their place since."""
        for left in await self.store.write_alone(checkpoints.take_left_files):
            destroy(left)

    def forget_results(self, ended_before: float) -> None:
        """Lets go of sample results that nobody fetched in time."""
        for request_id, ticket in list(self.tickets.items()):
            if ticket.result is not None and ticket.ended < ended_before:
                del self.tickets[request_id]
                self.completions.forget(request_id)


def _killer(n_deaths: int) -> Failure:
    return Failure("server", f"The engine died {n_deaths} times while this request was in its hands; it is given up.")


def _tell(engine: EngineState, message: ToEngine) -> None:
    if engine.connection:
        engine.connection.send(message)

"""The journal of training: operations as they were accepted, batches as they were executed, results, snapshots.

An operation is written before it is acknowledged; a batch and its results before they are released. What a restarted
engine needs of it is put together in `store/replay.py`. Knows no meaning of an operation.
"""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection, delete, func, insert, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from loreloop.protocol.errors import BadRequest, Conflict, Gone, NotFound, ServerError
from loreloop.protocol.link import BatchDone, OpEnd, Snapshotted
from loreloop.protocol.paths import owner_of
from loreloop.protocol.sampling import Revision
from loreloop.protocol.training import Failure, OpResult, OptimStep, SavedResult, SkipSeq, TrainOp
from loreloop.store import accounts, checkpoints, runs, samplers, usage
from loreloop.store.account_rows import Spent
from loreloop.store.files import in_row, placed
from loreloop.store.rows import Acceptance, AddCheckpoint, AddSampler, AfterOp, CheckpointRow, Outcome
from loreloop.store.schema import OPS, PLANS, REMOVED_RUNS, RESULTS, RUNS, SNAPSHOTS, SPOOL
from loreloop.store.segments import Location, Segments

DAMAGE = (ServerError, msgspec.DecodeError, ValueError, TypeError)  # what reading rows and records may raise
RESULT_DECODER: msgspec.msgpack.Decoder[OpResult] = msgspec.msgpack.Decoder(OpResult)


def append(connection: Connection, segments: Segments, op: TrainOp, accepted: Acceptance) -> bool:
    """Writes an accepted operation down. False: the same one is there already; BadRequest: another one is."""
    # A client that lost the answer posts the same body again. The fingerprint tells that from a second, different body
    # under the same sequence id, which would silently be dropped otherwise.
    known = connection.scalar(select(OPS.c.fingerprint).where(OPS.c.model_id == op.model_id, OPS.c.seq_id == op.seq_id))
    if known is not None:
        if known != accepted.fingerprint:
            raise BadRequest(
                f"Sequence id {op.seq_id} of {op.model_id} was used before with another body; count on from there."
            )
        return False
    # Checked in the same transaction as the insert, so that no operation slips in behind the end of its session.
    if not connection.scalar(select(RUNS.c.live).where(RUNS.c.id == op.model_id)):
        raise BadRequest(f"The session of {op.model_id} has ended; load one of its checkpoints in a new one.")
    # The body goes to the segment before its row is written: a row never points at bytes that are not there, and bytes
    # without a row are reported at the next start.
    location = segments.append(msgspec.msgpack.encode(op))
    connection.execute(
        insert(OPS).values(
            request_id=op.request_id,
            model_id=op.model_id,
            seq_id=op.seq_id,
            base_model=accepted.base_model,
            fingerprint=accepted.fingerprint,
            after=msgspec.json.encode(accepted.after).decode(),
            reply=msgspec.json.encode(accepted.reply).decode(),
            location=_text(location),
            done=False,
            created=accepted.created,
            kind=op.__struct_config__.tag,
        )
    )
    if accepted.created is not None:
        # Here, since a write of its own would cost each operation a second sync.
        runs.touch(connection, op.model_id, accepted.created)
    return True


def is_known(connection: Connection, request_id: str) -> bool:
    """Whether an operation with this id was accepted before, whatever became of it."""
    return connection.execute(select(OPS.c.request_id).where(OPS.c.request_id == request_id)).first() is not None


def is_promised(connection: Connection, reply: dict[str, str]) -> bool:
    """Whether an operation that has not ended will answer this."""
    text = msgspec.json.encode(reply).decode()
    return connection.execute(select(OPS.c.request_id).where(OPS.c.reply == text, ~OPS.c.done)).first() is not None


def record_batch(
    connection: Connection, segments: Segments, base_model: str, done: BatchDone, now: float
) -> list[OpEnd]:
    """Writes down what was executed and what came out; a result that is there already stays as it is.

    Gives the ends with which a replay went astray: a failure of an operation that had changed its model's state.
    """
    astray: list[OpEnd] = []
    # A replayed batch has its plan already. To write it again would fail, and its number is still the old one.
    if not done.replayed:
        request_ids = msgspec.json.encode(done.batch.request_ids).decode()
        connection.execute(
            insert(PLANS).values(base_model=base_model, plan_no=done.batch.plan_no, request_ids=request_ids)
        )
    for end in done.ends:
        known = connection.scalar(select(RESULTS.c.request_id).where(RESULTS.c.request_id == end.request_id))
        # A result that clients may have seen is never replaced, even if the replay came out differently.
        if known is None:
            _record_end(connection, segments, end, done.batch.plan_no, now)
        elif isinstance(end.result, Failure) and _had_changed_state(connection, segments, end.request_id):
            astray.append(end)
        elif isinstance(end.result, SavedResult):
            _note_rewritten(connection, end.request_id, end.result)
    return astray


def _record_end(connection: Connection, segments: Segments, end: OpEnd, plan_no: int, now: float) -> None:
    own_row, result = OPS.c.request_id == end.request_id, end.result
    effects: tuple[AfterOp, ...] = ()
    if not isinstance(result, Failure):
        try:
            after = connection.scalar(select(OPS.c.after).where(own_row))
            effects = msgspec.json.decode(after or "[]", type=tuple[AfterOp, ...])
        except DAMAGE as error:
            # Without its effects a success would promise a checkpoint that does not exist.
            result = damaged_row(end.request_id, error)
    location = _text(segments.append(msgspec.msgpack.encode(result)))
    connection.execute(insert(RESULTS).values(request_id=end.request_id, location=location, created=now))
    connection.execute(update(OPS).where(own_row).values(done=True, plan_no=plan_no))
    if isinstance(end.result, Failure) and not _lets_go(connection, end):
        # It has changed nothing. Executed again, what had failed for want of memory, say, might succeed, and the model
        # would be in a state that none of its later results came from.
        connection.execute(update(OPS).where(own_row).values(location=_skip(connection, segments, end.request_id)))
    if not isinstance(result, Failure):
        usage.add_trained(connection, owner_of(end.request_id), end.n_trained_tokens, now)
    # In the same transaction as the result, so that a client that sees the result also finds what it made.
    for effect in effects:
        _carry_out(connection, effect, result, now)


def _lets_go(connection: Connection, end: OpEnd) -> bool:
    """Whether an operation that has failed must fail again in a replay: a step of the optimizer over gradients that are
    no numbers lets go of them, and the steps behind it found none."""
    is_users = isinstance(end.result, Failure) and end.result.category == "user"
    kind = connection.scalar(select(OPS.c.kind).where(OPS.c.request_id == end.request_id)) if is_users else None
    return kind == OptimStep.__struct_config__.tag


def _note_rewritten(connection: Connection, request_id: str, saved: SavedResult) -> None:
    """A save whose end is known already has written its files: in a replay, or after its session had ended."""
    text = connection.scalar(select(OPS.c.after).where(OPS.c.request_id == request_id))
    try:
        effects = msgspec.json.decode(text or "[]", type=tuple[AfterOp, ...])
    except DAMAGE:
        return
    # The checkpoint may have been deleted meanwhile; nothing else would ever take these files away again.
    checkpoints.leave_files(connection, [effect.row.folder for effect in effects if effect.row.folder])
    # It may be there: then its files are the new ones from now on, and would be taken for damaged by the old sum.
    for effect in effects:
        if isinstance(effect, AddCheckpoint):
            checkpoints.set_sum(connection, effect.row.path, saved.size_bytes, saved.sums_crc32 or None)


def _had_changed_state(connection: Connection, segments: Segments, request_id: str) -> bool:
    """Whether the recorded result is that of an operation that left the model in another state."""
    # An expired or unreadable result counts as unchanged: the model then goes on, because nothing says that the replay
    # went astray.
    location = connection.scalar(select(RESULTS.c.location).where(RESULTS.c.request_id == request_id))
    try:
        recorded = RESULT_DECODER.decode(segments.read(location_of(location))) if location else None
    except DAMAGE:
        recorded = None
    return recorded is not None and not isinstance(recorded, Failure | SavedResult)


def damaged_row(request_id: str, error: Exception) -> Failure:
    """The end of an operation of which the database holds something unreadable."""
    return Failure("server", f"What the database holds of {request_id} is damaged ({error}).")


def _carry_out(connection: Connection, effect: AfterOp, result: OpResult, now: float) -> None:
    match effect:
        case AddCheckpoint(row, ttl_seconds):
            saved = result if isinstance(result, SavedResult) else SavedResult(0)
            expires = now + ttl_seconds if ttl_seconds is not None else None
            written = {"size_bytes": saved.size_bytes, "sums_crc32": saved.sums_crc32 or None}
            checkpoints.add(connection, msgspec.structs.replace(row, created=now, expires=expires, **written))
            accounts.add_of_run(connection, row.run_id, Spent(n_checkpoints=1), now)
        case AddSampler(row):
            samplers.create(connection, row, now)
            if row.inflight and row.run_id and row.revision_id and row.folder:
                samplers.point_inflight(connection, row.run_id, Revision(row.revision_id, row.folder))


def outcome(connection: Connection, segments: Segments, request_id: str) -> Outcome | None:
    """The end of a training operation, None while it has none.

    Gone: its result was kept for its time. NotFound: no operation has this id. What cannot be read any more ends as a
    failure that says so.
    """
    row = connection.execute(
        select(OPS.c.reply, RESULTS.c.location, RESULTS.c.request_id.label("ended"))
        .select_from(OPS.outerjoin(RESULTS, OPS.c.request_id == RESULTS.c.request_id))
        .where(OPS.c.request_id == request_id)
    ).first()
    if row is None:
        raise NotFound(f"There is no request {request_id!r}.")
    if row.ended is None:
        return None
    if row.location is None:
        raise Gone(f"The result of {request_id} was kept for its time and is gone.")
    try:
        result = RESULT_DECODER.decode(segments.read(location_of(row.location)))
        return Outcome(result, msgspec.json.decode(row.reply, type=dict[str, str]))
    except DAMAGE as error:
        return Outcome(damaged_row(request_id, error), {})


def expire_results(connection: Connection, created_before: float) -> None:
    """Forgets results from before a moment. That there was one stays known while the run lives, so that a late
    question is answered with Gone."""
    # The row stays and loses its location alone; the bytes go with their segment once nothing else in it is used.
    old = RESULTS.c.created < created_before
    connection.execute(update(RESULTS).where(old, RESULTS.c.location.is_not(None)).values(location=None))
    # What belongs to runs that have ended, or were deleted, is asked for by nobody any more.
    dead = select(OPS.c.request_id).where(OPS.c.model_id.not_in(select(RUNS.c.id).where(RUNS.c.live)))
    connection.execute(delete(RESULTS).where(old, RESULTS.c.request_id.in_(dead)))
    without_result = OPS.c.request_id.not_in(select(RESULTS.c.request_id))  # places that were skipped among them
    connection.execute(delete(OPS).where(OPS.c.request_id.in_(dead), OPS.c.done, without_result))


def record_snapshot(connection: Connection, base_model: str, done: Snapshotted) -> None:
    """From now on replay begins after `done.plan_no`."""
    # The engine took the snapshot some time ago, so runs may have ended since.
    live = set(connection.scalars(select(RUNS.c.id).where(RUNS.c.live)))
    for snapshot in done.models:
        if snapshot.model_id not in live:
            continue  # it was dropped while the snapshot was on its way
        values = msgspec.structs.asdict(snapshot) | {"base_model": base_model, "file": in_row(snapshot.file)}
        # A model has one snapshot row. The file that it named until now is left to the sweeper, unless the model has
        # not changed and the file is the same.
        former = (SNAPSHOTS.c.model_id == snapshot.model_id) & SNAPSHOTS.c.file.not_in(["", values["file"]])
        checkpoints.leave_files(connection, connection.scalars(select(SNAPSHOTS.c.file).where(former)))
        statement = upsert(SNAPSHOTS).values(**values)
        connection.execute(statement.on_conflict_do_update(index_elements=["model_id"], set_=values))
        # Skipped places have no batch; the snapshot stands behind them all the same.
        passed = (OPS.c.model_id == snapshot.model_id) & (OPS.c.seq_id < snapshot.next_seq_id)
        connection.execute(update(OPS).where(passed, OPS.c.location.is_not(None)).values(location=None, done=True))
    # Operations up to the snapshot are never replayed, so their bodies are let go. The rows stay, since clients may
    # still ask for results.
    covered = (OPS.c.base_model == base_model) & OPS.c.done & (OPS.c.plan_no <= done.plan_no)
    connection.execute(update(OPS).where(covered, OPS.c.location.is_not(None)).values(location=None))
    connection.execute(delete(PLANS).where(PLANS.c.base_model == base_model, PLANS.c.plan_no <= done.plan_no))


def forget_model(
    connection: Connection, segments: Segments, model_id: str, failure: Failure, now: float, *, files_stay: bool = False
) -> list[str]:
    """A model that ended: what of it had no result gets `failure`, nothing is replayed; gives the files that may go."""
    location = _text(segments.append(msgspec.msgpack.encode(failure)))
    for request_id in connection.scalars(select(OPS.c.request_id).where(OPS.c.model_id == model_id, ~OPS.c.done)):
        connection.execute(insert(RESULTS).values(request_id=request_id, location=location, created=now))
    connection.execute(update(OPS).where(OPS.c.model_id == model_id).values(location=None, done=True))
    files = list(connection.scalars(select(SNAPSHOTS.c.file).where(SNAPSHOTS.c.model_id == model_id)))
    connection.execute(delete(SNAPSHOTS).where(SNAPSHOTS.c.model_id == model_id))
    if not files_stay:
        checkpoints.leave_files(connection, filter(None, files))
    return [placed(connection, file) if file else "" for file in files]


def end_model(connection: Connection, segments: Segments, model_id: str, failure: Failure, now: float) -> list[str]:
    """A model whose session has ended: it takes no more, and is forgotten; gives the files that may go."""
    # In one transaction: nobody looks for a run that is no longer live, so what it had waiting would never end.
    runs.set_dead(connection, model_id)
    return forget_model(connection, segments, model_id, failure, now)


def lose_model(connection: Connection, segments: Segments, model_id: str, failure: Failure, now: float) -> None:
    """A model whose state cannot be restored: as if it had ended, but whoever asks hears why."""
    runs.set_lost(connection, model_id, failure.message)
    forget_model(connection, segments, model_id, failure, now, files_stay=True)


def executed_model(connection: Connection, request_id: str) -> str | None:
    """The model of an operation that has been executed, and will be again at every replay."""
    needed = OPS.c.plan_no.is_not(None) & OPS.c.location.is_not(None)
    return connection.scalar(select(OPS.c.model_id).where(OPS.c.request_id == request_id, needed))


def check_settled(connection: Connection, saved: CheckpointRow) -> None:
    """Conflict while a save of the checkpoint is still to be executed, perhaps once more: it writes the files anew."""
    live = select(RUNS.c.id).where(RUNS.c.live)
    to_come = OPS.c.location.is_not(None) & OPS.c.model_id.in_(live)
    saving = func.instr(OPS.c.after, f'{in_row(saved.folder)}"') > 0
    if connection.execute(select(OPS.c.request_id).where(OPS.c.model_id == saved.run_id, to_come, saving)).first():
        raise Conflict(
            f"The server did not end in order, so the next one executes the save of {saved.path} again and writes its "
            "files anew. Start a server and stop it, then change the files."
        )


def give_up(connection: Connection, segments: Segments, request_id: str, failure: Failure, now: float) -> None:
    """Ends an operation that cannot be executed: it gets `failure`, and its place in the order is skipped."""
    own_row = OPS.c.request_id == request_id
    if connection.execute(select(OPS.c.request_id).where(own_row, OPS.c.plan_no.is_(None))).first() is None:
        return
    result = _text(segments.append(msgspec.msgpack.encode(failure)))
    ended = upsert(RESULTS).values(request_id=request_id, location=result, created=now)
    connection.execute(ended.on_conflict_do_nothing())
    connection.execute(update(OPS).where(own_row).values(location=_skip(connection, segments, request_id), done=True))


def _skip(connection: Connection, segments: Segments, request_id: str) -> str | None:
    """Where it is written that an operation is passed over; None where there is no such operation."""
    row = connection.execute(select(OPS.c.model_id, OPS.c.seq_id).where(OPS.c.request_id == request_id)).first()
    if row is None:
        return None
    return _text(segments.append(msgspec.msgpack.encode(SkipSeq(row.model_id, row.seq_id, request_id))))


def pinned(connection: Connection) -> set[str]:
    """Requests whose operation may still be replayed."""
    return set(connection.scalars(select(OPS.c.request_id).where(OPS.c.location.is_not(None))))


def sweep_segments(connection: Connection, segments: Segments) -> None:
    """Deletes segments that no row refers to; on the writer's thread, so that no record is between file and row, and in
    a transaction of its own, so that no row refers to them again after it."""
    segments.sweep(used_segments(connection))
    connection.execute(delete(REMOVED_RUNS).where(REMOVED_RUNS.c.segment < min(segments.numbers())))


def used_segments(connection: Connection) -> set[int]:
    """Numbers of the segments that some row refers to."""
    used: set[int] = set()
    for table in (OPS, RESULTS, SPOOL):
        column = table.c.location
        used |= {found.segment for text in connection.scalars(select(column)) if text and (found := readable(text))}
    return used


def readable(location: str) -> Location | None:
    """The place that a row names, None where the row is damaged."""
    try:
        return location_of(location)
    except DAMAGE:
        return None


def _text(location: Location) -> str:
    return msgspec.json.encode(location).decode()


def location_of(text: str) -> Location:
    """The place that a row names; one of `DAMAGE` where the row is damaged."""
    return msgspec.json.decode(text, type=Location)

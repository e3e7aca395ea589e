"""Records of sampled sequences that training may refer to, for a day and within a bound of bytes."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from sqlalchemy import Connection, bindparam, delete, func, select, update
from sqlalchemy.dialects.sqlite import insert

from loreloop.protocol.errors import BadRequest, ServerError
from loreloop.store.rows import SequenceRecord
from loreloop.store.schema import SPOOL
from loreloop.store.segments import Location, Segments


def add(
    connection: Connection,
    segments: Segments,
    session_id: str,
    sequence_ids: Sequence[str],
    records: Sequence[SequenceRecord],
    *,
    expires: float,
    max_bytes: int,
) -> None:
    """Keeps one record a sequence; over `max_bytes` in all, those that expire first go first."""
    for sequence_id, record in zip(sequence_ids, records, strict=True):
        body = msgspec.msgpack.encode(record)
        location = msgspec.json.encode(segments.append(body)).decode()
        connection.execute(
            insert(SPOOL)
            .values(
                sequence_id=sequence_id, session_id=session_id, location=location, n_bytes=len(body), expires=expires
            )
            .on_conflict_do_nothing()  # a request that was forgotten and asked again
        )
    # The bound is on what is kept in all, not on one session: records are only a cache of what was sampled.
    excess = (connection.scalar(select(func.sum(SPOOL.c.n_bytes))) or 0) - max_bytes
    if excess > 0:
        _drop_oldest(connection, excess)


def get(connection: Connection, segments: Segments, session_id: str, sequence_id: str, now: float) -> SequenceRecord:
    """The record of a sequence of this session; BadRequest if it expired or is not this session's."""
    row = connection.execute(
        select(SPOOL).where(SPOOL.c.sequence_id == sequence_id, SPOOL.c.session_id == session_id)
    ).first()
    if row is None or row.expires <= now:
        raise BadRequest(
            f"The sequence {sequence_id!r} is not recorded for this session: it expired, or was sampled elsewhere or "
            "without record_stability_info. Sample again with it."
        )
    try:
        location = msgspec.json.decode(row.location, type=Location)
        return msgspec.msgpack.decode(segments.read(location), type=SequenceRecord)
    except (ServerError, msgspec.DecodeError, TypeError) as error:
        raise BadRequest(
            f"What was recorded of the sequence {sequence_id!r} is damaged ({error}). Sample again."
        ) from None


def renew(connection: Connection, sequence_ids: Sequence[str], expires: float) -> None:
    """Training that uses records restarts their time."""
    renewed = update(SPOOL).where(SPOOL.c.sequence_id == bindparam("one")).values(expires=expires)
    if sequence_ids:
        connection.execute(renewed, [{"one": sequence_id} for sequence_id in sequence_ids])


def sweep(connection: Connection, now: float) -> None:
    """Forgets records whose time is over; their bytes go with the segment once nothing else needs it."""
    connection.execute(delete(SPOOL).where(SPOOL.c.expires <= now))


def _drop_oldest(connection: Connection, excess_bytes: int) -> None:
    gone: list[str] = []
    for row in connection.execute(select(SPOOL.c.sequence_id, SPOOL.c.n_bytes).order_by(SPOOL.c.expires)):
        if excess_bytes <= 0:
            break
        gone.append(row.sequence_id)
        excess_bytes -= row.n_bytes
    connection.execute(delete(SPOOL).where(SPOOL.c.sequence_id == bindparam("one")), [{"one": one} for one in gone])

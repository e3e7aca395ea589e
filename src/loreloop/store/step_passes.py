"""The passes that a step of training has learned from, as long as the journal has them: until a snapshot of the model's
state covers them, which is some half a minute of an engine's work. Nothing is kept longer for the sake of looking."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import Connection, select

from loreloop.protocol.training import ForwardBackward, OptimStep, PassResult
from loreloop.store.journal import DAMAGE, RESULT_DECODER, location_of
from loreloop.store.replay import OP_DECODER
from loreloop.store.schema import OPS, RESULTS
from loreloop.store.segments import Segments
from loreloop.store.series_tables import RUN_SERIES

MOST_BYTES = 64 << 20  # of bodies that are read for one step
PASS, STEP = ForwardBackward.__struct_config__.tag, OptimStep.__struct_config__.tag


class SeenPass(NamedTuple):
    """A pass, and what came out of it; None where that has expired or was a failure."""

    op: ForwardBackward
    result: PassResult | None


class SeenStep(NamedTuple):
    """The passes of a step that are still there, of `n_passes` that there were."""

    passes: list[SeenPass]
    n_passes: int


class _Bounds(NamedTuple):
    """The passes of a step lie between two places in the order of its run."""

    behind: int
    before: int


def of_step(connection: Connection, segments: Segments, run_id: str, step: int) -> SeenStep | None:
    """The passes of a step of a run; None where no such step was measured."""
    bounds = _bounds(connection, run_id, step)
    if bounds is None:
        return None
    joined = OPS.outerjoin(RESULTS, RESULTS.c.request_id == OPS.c.request_id)
    query = select(OPS.c.location, RESULTS.c.location.label("result")).select_from(joined)
    rows = connection.execute(query.where(*_passes(run_id, bounds)).order_by(OPS.c.seq_id)).all()
    found, n_bytes = list[SeenPass](), 0
    for row in rows:
        if row.location is None:
            continue
        location = location_of(row.location)
        n_bytes += location.length
        if n_bytes > MOST_BYTES and found:
            break
        if (seen := _read(segments, row.location, row.result)) is not None:
            found.append(seen)
    return SeenStep(found, len(rows))


def kept_steps(connection: Connection, run_id: str, most: int) -> list[int]:
    """The newest steps of a run whose passes are still there, the newest first; at most so many are looked at."""
    newest = connection.execute(_points(run_id).limit(1)).first()
    if newest is None:
        return []
    last = newest.step + newest.n_steps - 1
    return [step for step in range(last, max(0, last - most), -1) if _is_kept(connection, run_id, step)]


def _is_kept(connection: Connection, run_id: str, step: int) -> bool:
    bounds = _bounds(connection, run_id, step)
    if bounds is None:
        return False
    kept = select(OPS.c.seq_id).where(*_passes(run_id, bounds), OPS.c.location.is_not(None)).limit(1)
    return connection.execute(kept).first() is not None


def _points(run_id: str):  # type: ignore[no-untyped-def]
    return select(RUN_SERIES).where(RUN_SERIES.c.run_id == run_id).order_by(RUN_SERIES.c.step.desc())


def _passes(run_id: str, bounds: _Bounds):  # type: ignore[no-untyped-def]
    order = OPS.c.seq_id
    return OPS.c.model_id == run_id, OPS.c.kind == PASS, order > bounds.behind, order < bounds.before


def _bounds(connection: Connection, run_id: str, step: int) -> _Bounds | None:
    """A point of the series has the time of the result that it came from, so the two find each other. Of a point that
    stands for several steps it is the last one's, and those before it are counted back."""
    point = connection.execute(_points(run_id).where(RUN_SERIES.c.step <= step).limit(1)).first()
    if point is None or step > (last := point.step + point.n_steps - 1):
        return None
    joined = OPS.join(RESULTS, RESULTS.c.request_id == OPS.c.request_id)
    ended = select(OPS.c.seq_id).select_from(joined).where(OPS.c.model_id == run_id, OPS.c.kind == STEP)
    newest = ended.where(RESULTS.c.created <= point.created).order_by(OPS.c.seq_id.desc())
    places = list(connection.scalars(newest.limit(2).offset(last - step)))
    if not places:
        return None
    return _Bounds(behind=places[1] if len(places) > 1 else -1, before=places[0])


def _read(segments: Segments, location: str, result: str | None) -> SeenPass | None:
    try:
        op = OP_DECODER.decode(segments.read(location_of(location)))
        outcome = RESULT_DECODER.decode(segments.read(location_of(result))) if result is not None else None
    except DAMAGE:  # swept between the look and the reading, or damaged: to look is no reason to complain
        return None
    # One that has failed has left its place alone, and nothing is learned from one that only looks.
    if not isinstance(op, ForwardBackward) or op.forward_only:
        return None
    return SeenPass(op, outcome if isinstance(outcome, PassResult) else None)

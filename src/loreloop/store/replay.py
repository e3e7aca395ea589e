"""What a restarted engine needs to be where the last one was: snapshots, batches and operations.

What of it is damaged is named, and nothing is guessed. Knows no meaning of an operation.
"""

from __future__ import annotations

from collections import defaultdict

import msgspec
from sqlalchemy import Connection, func, select

from loreloop.protocol.link import Batch, ModelSnapshot
from loreloop.protocol.training import CreateModel, LoadState, SaveExternal, SaveSampler, SaveState, TrainOp
from loreloop.store.files import placed
from loreloop.store.journal import DAMAGE, location_of
from loreloop.store.rows import DamagedOp, ReplayState
from loreloop.store.schema import OPS, PLANS, RUNS, SNAPSHOTS
from loreloop.store.segments import Segments

OP_DECODER = msgspec.msgpack.Decoder(TrainOp)


def replay_state(connection: Connection, segments: Segments, base_model: str) -> ReplayState:
    """All that an engine needs; with `damaged` ones among it, these must be ended first."""
    # Runs that have ended are not brought back; their unfinished operations have ended with them.
    live = select(RUNS.c.id).where(RUNS.c.live)
    snapshots = connection.execute(
        select(SNAPSHOTS).where(SNAPSHOTS.c.base_model == base_model, SNAPSHOTS.c.model_id.in_(live))
    )
    needed = select(OPS).where(OPS.c.base_model == base_model, OPS.c.location.is_not(None), OPS.c.model_id.in_(live))
    ops: list[TrainOp] = []
    damaged: list[DamagedOp] = []
    planned: defaultdict[int, list[str]] = defaultdict(list)
    for row in connection.execute(needed.order_by(OPS.c.model_id, OPS.c.seq_id)):
        # Collected before the body is decoded: a damaged operation still belongs to its batch.
        if row.plan_no is not None:
            planned[row.plan_no].append(row.request_id)
        try:
            op = OP_DECODER.decode(segments.read(location_of(row.location)))
            ops.append(_placed(connection, op))
        except DAMAGE as error:
            damaged.append(DamagedOp(row.request_id, row.model_id, row.plan_no is not None, str(error)))
    plans = connection.execute(select(PLANS).where(PLANS.c.base_model == base_model).order_by(PLANS.c.plan_no))
    batches = tuple(Batch(row.plan_no, _request_ids(row.request_ids, planned[row.plan_no])) for row in plans)
    return ReplayState(
        tuple(
            ModelSnapshot(
                *(row.model_id, row.plan_no, row.next_seq_id, placed(connection, row.file) if row.file else ""),
                row.crc32 or "",
            )
            for row in snapshots
        ),
        batches,
        tuple(ops),
        # A number that was ever given out must not be given to another batch, or a later replay would mix the two.
        max(_last_plan(connection, base_model), *(batch.plan_no for batch in batches), 0) + 1,
        tuple(damaged),
    )


def _placed(connection: Connection, op: TrainOp) -> TrainOp:
    """The operation with its folder where the data folder is now."""
    match op:
        case CreateModel(load_folder=str(folder)):
            return msgspec.structs.replace(op, load_folder=placed(connection, folder))
        case LoadState() | SaveState() | SaveSampler() | SaveExternal():
            return msgspec.structs.replace(op, folder=placed(connection, op.folder))
    return op


def _request_ids(text: str, planned: list[str]) -> tuple[str, ...]:
    """The operations of a batch in their order; where its row is damaged, those that say they were in it."""
    try:
        found = msgspec.json.decode(text, type=tuple[str, ...])
    except DAMAGE:
        found = ()
    return found if set(planned) <= set(found) else tuple(planned)


def _last_plan(connection: Connection, base_model: str) -> int:
    """The highest plan number ever given out, also where its plan is swept."""
    of_ops = connection.scalar(select(func.max(OPS.c.plan_no)).where(OPS.c.base_model == base_model))
    of_files = connection.scalar(select(func.max(SNAPSHOTS.c.plan_no)).where(SNAPSHOTS.c.base_model == base_model))
    return max(of_ops or 0, of_files or 0)

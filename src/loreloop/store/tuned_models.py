"""Models that fine-tuning jobs have made, by their `ft:` names: which checkpoints each of them is.

The checkpoints are ordinary ones of the key that asked; where they are deleted, the name means nothing any more.
"""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection, Row, delete, insert, select

from loreloop.protocol.errors import NotFound
from loreloop.store.job_rows import TunedModel
from loreloop.store.pages import number_in_job
from loreloop.store.schema import TUNED_MODELS


def add(connection: Connection, made: TunedModel) -> TunedModel | None:
    """Makes a name answer from now on; gives the one of the same name, from an attempt that was broken off, which gives
    way."""
    before = find(connection, None, made.name)
    values = msgspec.structs.asdict(made) | {"metrics": msgspec.json.encode(made.metrics).decode()}
    del values["number"]
    connection.execute(delete(TUNED_MODELS).where(TUNED_MODELS.c.name == made.name))
    connection.execute(insert(TUNED_MODELS).values(**values))
    return before


def find(connection: Connection, key_id: str | None, name: str) -> TunedModel | None:
    """The model of a name, None where there is none or it is another key's. `key_id` None: of any key."""
    wanted = select(TUNED_MODELS).where(TUNED_MODELS.c.name == name)
    if key_id is not None:
        wanted = wanted.where(TUNED_MODELS.c.key_id == key_id)
    row = connection.execute(wanted).first()
    return _row(row) if row is not None else None


def get(connection: Connection, key_id: str | None, name: str) -> TunedModel:
    """As `find`; NotFound where there is none."""
    found = find(connection, key_id, name)
    if found is None:
        raise NotFound(f"There is no fine-tuned model {name[:200]!r} of this key; GET /v1/models lists them.")
    return found


def final_of_job(connection: Connection, job_id: str) -> TunedModel | None:
    """The model that a job has ended with."""
    wanted = select(TUNED_MODELS).where(TUNED_MODELS.c.job_id == job_id, TUNED_MODELS.c.is_final)
    row = connection.execute(wanted).first()
    return _row(row) if row is not None else None


def has_state(connection: Connection, state_path: str) -> bool:
    """Whether a training checkpoint is what some model can be trained on from."""
    known = select(TUNED_MODELS.c.name).where(TUNED_MODELS.c.state_path == state_path)
    return connection.execute(known).first() is not None


def of_job(connection: Connection, job_id: str, limit: int, after: str = "") -> list[TunedModel]:
    """`limit` of what a job has made behind the one whose id is `after`, the newest first."""
    wanted = select(TUNED_MODELS).where(TUNED_MODELS.c.job_id == job_id)
    if after:
        wanted = wanted.where(TUNED_MODELS.c.step < number_in_job(job_id, "ftckpt", after, "checkpoint"))
    rows = connection.execute(wanted.order_by(TUNED_MODELS.c.step.desc()).limit(limit))
    return [_row(row) for row in rows]


def of_key(connection: Connection, key_id: str, limit: int, after: str = "") -> list[TunedModel]:
    """`limit` models of a key behind the one called `after`, in the order in which they were made."""
    wanted = select(TUNED_MODELS).where(TUNED_MODELS.c.key_id == key_id)
    if after:
        last = find(connection, key_id, after)
        if last is not None:
            wanted = wanted.where(TUNED_MODELS.c.number > last.number)
    return [_row(row) for row in connection.execute(wanted.order_by(TUNED_MODELS.c.number).limit(limit))]


def names_around(connection: Connection, key_id: str, name: str, reach: int) -> list[str]:
    """Names of a key that stand near an unknown one in the alphabet."""
    table = TUNED_MODELS.c
    own = select(table.name).where(table.key_id == key_id)
    before = own.where(table.name < name).order_by(table.name.desc()).limit(reach)
    behind = own.where(table.name >= name).order_by(table.name).limit(reach)
    return [*connection.scalars(before), *connection.scalars(behind)]


def remove(connection: Connection, key_id: str, name: str) -> TunedModel:
    """Forgets a name and gives what it was; NotFound where there is none."""
    found = get(connection, key_id, name)
    connection.execute(delete(TUNED_MODELS).where(TUNED_MODELS.c.name == name))
    return found


def _row(row: Row[tuple[object, ...]]) -> TunedModel:
    values = {name: row._mapping[name] for name in TunedModel.__struct_fields__}
    return TunedModel(**values | {"metrics": msgspec.json.decode(values["metrics"])})

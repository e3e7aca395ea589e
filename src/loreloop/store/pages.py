"""Where a page of a list begins: behind the item that a client's `after` names. Knows no rows in particular."""

from __future__ import annotations

from sqlalchemy import Connection, Table, select

from loreloop.protocol.errors import BadRequest


def number_of_row(connection: Connection, table: Table, key_id: str | None, after: str, what: str) -> int:
    """The place in lists of a key's row by its id (None: of any key's). BadRequest where there is none; `what` is its
    kind in words."""
    wanted = select(table.c.number).where(table.c.id == after)
    found = connection.scalar(wanted if key_id is None else wanted.where(table.c.key_id == key_id))
    if found is None:
        raise BadRequest(f"after names {after[:80]!r}, which is no {what} of this key.")
    return int(found)


def number_in_job(job_id: str, prefix: str, after: str, what: str) -> int:
    """The number at the end of the id of a job's part, which is the job's own with another `prefix`. BadRequest where
    it is no such id; `what` is its kind in words."""
    begin, _, number = after.rpartition("-")
    # No id with a longer number was ever given out, and one of any length would not fit into a column.
    if begin != job_id.replace("ftjob-", f"{prefix}-") or not (number.isdecimal() and len(number) < 10):
        raise BadRequest(f"after names {after[:80]!r}, which is no {what} of {job_id}.")
    return int(number)

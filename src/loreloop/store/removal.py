"""Takes a run away with all that was saved of it: rows here, files by whoever asked, once the rows are gone."""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection, delete, insert, select

from loreloop.protocol.errors import Conflict
from loreloop.protocol.training import Failure
from loreloop.store import checkpoints, journal, overview, runs, series
from loreloop.store.files import placed
from loreloop.store.schema import CHECKPOINTS, REMOVED_RUNS, RUNS, SAMPLERS
from loreloop.store.segments import Segments

DELETED = Failure("user", "The run of this request was deleted.")
MAX_CHECKPOINTS = 1 << 31


class Removed(msgspec.Struct, frozen=True):
    """What has no row any more: paths of checkpoints, revisions that engines may hold, folders and files to delete."""

    paths: tuple[str, ...]
    revision_ids: tuple[str, ...]
    folders: tuple[str, ...]
    files: tuple[str, ...]


def check_removable(connection: Connection, run_id: str, *, force: bool) -> None:
    """Conflict while a deployment answers with one of its checkpoints, or, unless forced, while the run is live."""
    run = overview.find_run(connection, run_id)
    for saved in overview.list_checkpoints(connection, None, run_id, MAX_CHECKPOINTS):
        checkpoints.check_not_deployed(connection, saved.row.path)
    if run.live and not force:
        raise Conflict(
            f"The run {run_id} is live: its client may still train it. End the client (its session ends with it), or "
            "delete the run with --force."
        )


def remove_run(connection: Connection, segments: Segments, run_id: str, now: float, *, force: bool) -> Removed:
    """Removes the run, its checkpoints and its samplers; what waits of its operations ends as a failure."""
    check_removable(connection, run_id, force=force)
    # The operations go first: a waiting one must have an end before the rows that it refers to are gone.
    files = journal.forget_model(connection, segments, run_id, DELETED, now)
    runs.set_dead(connection, run_id)
    saved = [one.row for one in overview.list_checkpoints(connection, None, run_id, MAX_CHECKPOINTS)]
    of_run = SAMPLERS.c.run_id == run_id
    samplers = connection.execute(select(SAMPLERS.c.revision_id, SAMPLERS.c.folder).where(of_run)).all()
    folders = (*(row.folder for row in saved), *(placed(connection, row.folder) for row in samplers if row.folder))
    checkpoints.leave_files(connection, folders)
    connection.execute(delete(SAMPLERS).where(of_run))
    connection.execute(delete(CHECKPOINTS).where(CHECKPOINTS.c.run_id == run_id))
    series.forget(connection, run_id)
    connection.execute(delete(RUNS).where(RUNS.c.id == run_id))
    # Its operations may still stand in segments. Noted, so that the next start does not report them as lost.
    connection.execute(insert(REMOVED_RUNS).prefix_with("OR REPLACE").values(run_id=run_id, segment=segments.number))
    paths = tuple(str(row.path) for row in saved)
    return Removed(
        paths=paths,
        revision_ids=(*paths, *(row.revision_id for row in samplers if row.revision_id)),
        folders=folders,
        files=tuple(file for file in files if file),
    )

"""Runs and checkpoints under `/loop/v1` are deleted: with `train` a key's own, with `admin` anybody's."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loreloop.http.addresses import checkpoint_path
from loreloop.http.audited import entry_of
from loreloop.http.bodies import answer
from loreloop.http.services import ADMIN, TRAIN, caller, has, now, services
from loreloop.protocol.paths import CheckpointKind, CheckpointPath, parse_path
from loreloop.store import audit, checkpoints, overview, removal, runs
from loreloop.store.account_rows import AuditEntry
from loreloop.store.files import delete
from loreloop.store.rows import KeyRow
from loreloop.store.segments import Segments


async def delete_run(request: Request) -> Response:
    """Deletes a run with all its checkpoints and answers with their paths. A live run goes only with `force=true`."""
    key, served, run_id = caller(request, TRAIN), services(request), request.path_params["run_id"]
    if not has(key, ADMIN):
        served.store.read(runs.get, key.id, run_id)
    force = request.query_params.get("force") == "true"
    # Rows go first and files after them: a crash between the two leaves files that are swept later, never a row without
    # its files.
    removed = await served.store.write(_remove_run, served.store.segments, key, run_id, force=force)
    await served.dispatcher.drop_model(run_id)
    for revision_id in removed.revision_ids:
        served.dispatcher.drop_revision(revision_id)
    for folder in removed.folders:
        delete(Path(folder))
    for file in removed.files:
        Path(file).unlink(missing_ok=True)
    return answer({"deleted": removed.paths})


def _remove_run(
    connection: Connection, segments: Segments, key: KeyRow, run_id: str, *, force: bool
) -> removal.Removed:
    """Removes a run, with an entry in the audit log for each checkpoint of it, in the same transaction."""
    owner = overview.find_run(connection, run_id).key_id
    removed = removal.remove_run(connection, segments, run_id, now(), force=force)
    for path in removed.paths:
        audit.note(connection, _entry(key, parse_path(path), owner))
    return removed


def _entry(key: KeyRow, path: CheckpointPath, owner: str) -> AuditEntry:
    """An entry about a deletion, which names the owner where an admin key has deleted what is another's."""
    return entry_of("checkpoint_delete", key, path, **({"owner": owner} if owner != key.id else {}))


async def delete_checkpoint(request: Request) -> Response:
    """Deletes one checkpoint and answers with its path. Conflict where a deployment answers with it."""
    key, served, path = caller(request, TRAIN), services(request), checkpoint_path(request)
    # The store asks for the owner, so an admin key acts in the owner's name.
    owner = served.store.read(overview.find_checkpoint, path).row.key_id if has(key, ADMIN) else key.id
    row = await served.store.write(audit.noting, _entry(key, path, owner), checkpoints.remove, owner, path)
    if row.kind is CheckpointKind.SAMPLER:
        # The engine may hold the adapter in memory, and would go on answering with it.
        served.dispatcher.drop_revision(str(row.path))
    await served.dispatcher.delete_left_files()
    return answer({"deleted": [str(path)]})


ROUTES = [
    Route("/runs/{run_id}", delete_run, methods=["DELETE"]),
    Route("/checkpoints/{run_id}/{kind}/{name}", delete_checkpoint, methods=["DELETE"]),
]

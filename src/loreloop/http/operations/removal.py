"""Runs and checkpoints under `/loop/v1` are deleted: with `train` a key's own, with `admin` anybody's."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loreloop.http.addresses import checkpoint_path
from loreloop.http.bodies import answer
from loreloop.http.services import ADMIN, TRAIN, caller, has, now, services
from loreloop.protocol.paths import CheckpointKind
from loreloop.store import checkpoints, overview, removal, runs
from loreloop.store.files import delete


async def delete_run(request: Request) -> Response:
    """Deletes a run with all its checkpoints and answers with their paths. A live run goes only with `force=true`."""
    key, served, run_id = caller(request, TRAIN), services(request), request.path_params["run_id"]
    if not has(key, ADMIN):
        served.store.read(runs.get, key.id, run_id)
    force = request.query_params.get("force") == "true"
    # Rows go first and files after them: a crash between the two leaves files that are swept later, never a row without
    # its files.
    removed = await served.store.write(removal.remove_run, served.store.segments, run_id, now(), force=force)
    await served.dispatcher.drop_model(run_id)
    for revision_id in removed.revision_ids:
        served.dispatcher.drop_revision(revision_id)
    for folder in removed.folders:
        delete(Path(folder))
    for file in removed.files:
        Path(file).unlink(missing_ok=True)
    return answer({"deleted": removed.paths})


async def delete_checkpoint(request: Request) -> Response:
    """Deletes one checkpoint and answers with its path. Conflict where a deployment answers with it."""
    key, served, path = caller(request, TRAIN), services(request), checkpoint_path(request)
    # The store asks for the owner, so an admin key acts in the owner's name.
    owner = served.store.read(overview.find_checkpoint, path).row.key_id if has(key, ADMIN) else key.id
    row = await served.store.write(checkpoints.remove, owner, path)
    if row.kind is CheckpointKind.SAMPLER:
        # The engine may hold the adapter in memory, and would go on answering with it.
        served.dispatcher.drop_revision(str(row.path))
    await served.dispatcher.delete_left_files()
    return answer({"deleted": [str(path)]})


ROUTES = [
    Route("/runs/{run_id}", delete_run, methods=["DELETE"]),
    Route("/checkpoints/{run_id}/{kind}/{name}", delete_checkpoint, methods=["DELETE"]),
]

"""Tinker routes by which weights pass from one key to another: published, and copied; and who may read what.

A checkpoint is read by its owner, by everybody who knows its path once it is public, and by whoever brings a key of its
owner as an access token.
"""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loreloop.http.addresses import checkpoint_path
from loreloop.http.audited import entry_of, note_read
from loreloop.http.bodies import answer, read_json
from loreloop.http.services import INFER, TRAIN, caller, has, known_key, now, services
from loreloop.http.tinker.submission import active_session
from loreloop.protocol import paths, rest
from loreloop.protocol.checksums import check_all_files
from loreloop.protocol.errors import BadRequest, Forbidden
from loreloop.protocol.paths import CheckpointPath, parse_path
from loreloop.store import audit, checkpoints, runs, sessions, sharing
from loreloop.store.rows import CheckpointRow, KeyRow, Metadata, RunRow, SessionNew

MAY_DIFFER = ("created", "last_request", "user_metadata")  # between the run of a copy and that of the next one there
TOKEN_HEADER, IDEMPOTENCY_HEADER = "x-tinker-weights-access-token", "x-idempotency-key"


async def publish(request: Request) -> Response:
    """Lets every key that knows the path read a checkpoint."""
    return await _set_public(request, public=True)


async def unpublish(request: Request) -> Response:
    """Lets its owner alone read a checkpoint again; copies that others have made stay theirs."""
    return await _set_public(request, public=False)


async def _set_public(request: Request, *, public: bool) -> Response:
    key, path = caller(request, TRAIN), checkpoint_path(request)
    entry = entry_of("checkpoint_publish" if public else "checkpoint_unpublish", key, path)
    await services(request).store.write(audit.noting, entry, sharing.set_public, key.id, path, public=public)
    return answer({})


def readable(request: Request, key: KeyRow, path: CheckpointPath, token: str | None = None) -> CheckpointRow:
    """A checkpoint that the key may read, itself or with the access token. NotFound where it may not, as where there
    is none; Forbidden where the token is none."""
    key_ids = [key.id]
    if token:
        other = known_key(request, token)
        if other is None or not has(other, INFER):
            raise Forbidden("The weights access token is no key of this server that may read; ask for another one.")
        key_ids.append(other.id)
    return services(request).store.read(sharing.readable, key_ids, path)


async def copy_weights(request: Request) -> Response:
    """Copies a checkpoint into a run of its own, which cannot be trained. The same request again gives the same
    copy."""
    key = caller(request, TRAIN)
    body = await read_json(request, rest.CopyWeightsBody)
    token = body.weights_access_token or request.headers.get(TOKEN_HEADER)
    source = readable(request, key, parse_path(body.source_path), token)
    folder = checkpoints.folder_of(source)
    await asyncio.to_thread(check_all_files, folder)
    run = await _run_of_copy(request, key, body, source)
    path = CheckpointPath(run.id, source.kind, source.name)
    target = services(request).dispatcher.files.checkpoint(path)
    expires = None if body.ttl_seconds is None else now() + body.ttl_seconds
    of_copy = {"run_id": run.id, "key_id": key.id, "folder": str(target), "created": now(), "expires": expires}
    copy = msgspec.structs.replace(source, **of_copy, public=False, user_metadata=_told(key, source, source))
    # Asked before files lie there, which would be taken for those of the checkpoint that has the name.
    services(request).store.read(sharing.is_known, copy)
    # Noted before the files are the key's, so that no kill leaves a read that the audit log does not hold.
    await note_read(request, key, source, "copy")
    # Files first, then the row: a kill between the two leaves files that the repeated request finds.
    await _link(request, folder, copy)
    await services(request).store.write(audit.noting, entry_of("checkpoint_copy", key, path), sharing.add_copy, copy)
    return answer({"tinker_path": str(path)})


async def _link(request: Request, folder: Path, copy: CheckpointRow) -> None:
    """Puts the files of a copy in their place. Conflict where they are not what its row is to say."""
    served, target = services(request), Path(copy.folder)
    with checkpoints.linking():
        made = await asyncio.to_thread(sharing.link_files, folder, target)
    if await asyncio.to_thread(sharing.is_copy, folder, copy):
        return
    # Only what this request has made, and by way of the writer, which leaves what has got a row meanwhile.
    if made:
        await served.store.write(checkpoints.leave_files, [copy.folder])
        await served.dispatcher.delete_left_files()
    raise sharing.changed_meanwhile(copy.path)


async def _run_of_copy(request: Request, key: KeyRow, body: rest.CopyWeightsBody, source: CheckpointRow) -> RunRow:
    """The run that a copy belongs to: a place in a session, or the only run of a session made for it."""
    store, run_id = services(request).store, await _place_of_copy(request, key, body, source)
    of_copy = {"id": run_id, "session_id": run_id.partition(":")[0], "key_id": key.id, "live": False, "lost": None}
    of_source = store.read(runs.of_anyone, source.run_id)
    told = _told(key, source, of_source)
    run = msgspec.structs.replace(of_source, created=now(), last_request=now(), user_metadata=told, **of_copy)
    await store.write(runs.create, run)
    # What had the place before stays there, and may be a model that is trained.
    there = store.read(runs.of_anyone, run_id)
    same = msgspec.structs.replace(there, **{name: getattr(run, name) for name in MAY_DIFFER}) == run
    if not same:
        raise BadRequest(f"{run_id} is a model of its own, and no place for this copy; name another model_seq_id.")
    return run


def _told(key: KeyRow, source: CheckpointRow, row: CheckpointRow | RunRow) -> Metadata | None:
    """The metadata that a copy takes over: none of another key's, which may be private."""
    return row.user_metadata if source.key_id == key.id else None


async def _place_of_copy(request: Request, key: KeyRow, body: rest.CopyWeightsBody, source: CheckpointRow) -> str:
    """The id of a copy's run, whose session is there."""
    if body.session_id is not None and body.model_seq_id is not None:
        active_session(request, key, body.session_id)
        session_id, number = body.session_id, body.model_seq_id
    elif body.destination_project_id is not None:
        # Its id follows from the request, so that a repeated one finds the session that the first has made.
        wanted = f"{key.id} {body.source_path} {request.headers.get(IDEMPOTENCY_HEADER) or now()}"
        session_id, number = hashlib.sha256(wanted.encode()).hexdigest()[:32], 0
        new = SessionNew(project_id=body.destination_project_id, display_name=f"copy of {source.path}")
        await services(request).store.write(sessions.create_ended, key.id, new, now(), session_id)
    else:
        raise BadRequest("Name where the copy goes: destination_project_id, or session_id with model_seq_id.")
    return paths.model_id(session_id, number)


PUBLISH = "/training_runs/{run_id}/checkpoints/{kind}/{name}/publish"
ROUTES = [
    Route(PUBLISH, publish, methods=["POST"]),
    Route(PUBLISH, unpublish, methods=["DELETE"]),
    Route("/copy_weights", copy_weights, methods=["POST"]),
]

"""Tinker routes that look at runs and checkpoints, and delete them or change their expiry."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loreloop.http.addresses import checkpoint_path
from loreloop.http.audited import entry_of
from loreloop.http.bodies import answer, read_json
from loreloop.http.services import INFER, TRAIN, Services, caller, now, services
from loreloop.http.tinker.sharing import readable
from loreloop.http.tinker.training import state_path
from loreloop.protocol.errors import BadRequest, Conflict
from loreloop.protocol.paths import CheckpointKind, parse_path
from loreloop.protocol.rest import TtlBody, WeightsInfoBody
from loreloop.store import audit, checkpoints, jobs, runs, sharing
from loreloop.store.rows import CheckpointRow, KeyRow, RunRow

KINDS = {CheckpointKind.TRAINING: "training", CheckpointKind.SAMPLER: "sampler", CheckpointKind.EXTERNAL: "external"}


async def list_runs(request: Request) -> Response:
    """The key's runs by pages, with their newest checkpoints."""
    key, served = caller(request, INFER), services(request)
    limit, offset = page(request, default_limit=20)
    found = served.store.read(runs.list_page, key.id, limit, offset, request.query_params.get("project_id"))
    rows = [run_json(served, key.id, run) for run in found.rows]
    return answer({"training_runs": rows, "cursor": {"offset": offset, "limit": limit, "total_count": found.total}})


async def get_run(request: Request) -> Response:
    """One run of the key; NotFound where it has none of this id."""
    key, served = caller(request, INFER), services(request)
    run = readable_run(request, key, request.path_params["run_id"])
    return answer(run_json(served, run.key_id, run, of_others=run.key_id != key.id))


def readable_run(request: Request, key: KeyRow, run_id: str) -> RunRow:
    """A run of the key, or with `access_scope=accessible` one of which something is public. NotFound else."""
    store = services(request).store
    if request.query_params.get("access_scope") == "accessible" and store.read(sharing.has_public, run_id):
        return store.read(runs.of_anyone, run_id)
    return store.read(runs.get, key.id, run_id)


async def list_run_checkpoints(request: Request) -> Response:
    """All checkpoints of one run of the key."""
    key, served = caller(request, INFER), services(request)
    run = served.store.read(runs.get, key.id, request.path_params["run_id"])
    rows = served.store.read(checkpoints.of_run, key.id, run.id)
    return answer({"checkpoints": [checkpoint_json(row) for row in rows]})


async def list_checkpoints(request: Request) -> Response:
    """The key's checkpoints over all runs, by pages."""
    key, served = caller(request, INFER), services(request)
    limit, offset = page(request, default_limit=100)
    found = served.store.read(checkpoints.list_page, key.id, limit, offset)
    cursor = {"offset": offset, "limit": limit, "total_count": found.total}
    return answer({"checkpoints": [checkpoint_json(row) for row in found.rows], "cursor": cursor})


async def delete_checkpoint(request: Request) -> Response:
    """Deletes a checkpoint of the key. Conflict where a deployment answers with it, or a job is to begin at it."""
    key, served = caller(request, TRAIN), services(request)
    path = checkpoint_path(request)
    if job_id := served.store.read(jobs.beginning_at, key.id, str(path)):
        raise Conflict(f"The job {job_id} begins at {path}; cancel that, then delete the checkpoint.")
    entry = entry_of("checkpoint_delete", key, path)
    row = await served.store.write(audit.noting, entry, checkpoints.remove, key.id, path)
    if row.kind is CheckpointKind.SAMPLER:
        # The engine may hold the adapter in memory, and would go on answering with it.
        served.dispatcher.drop_revision(str(row.path))
    await served.dispatcher.delete_left_files()
    return answer({})


async def set_ttl(request: Request) -> Response:
    """Lets a checkpoint expire so many seconds from now, or never."""
    key = caller(request, TRAIN)
    body = await read_json(request, TtlBody)
    # No time to live means that the checkpoint never expires.
    expires = now() + body.ttl_seconds if body.ttl_seconds is not None else None
    await services(request).store.write(checkpoints.set_expiry, key.id, checkpoint_path(request), expires)
    return answer({})


async def weights_info(request: Request) -> Response:
    """What a client must know to make a training client that a checkpoint fits: base model, rank, trained parts."""
    key, served = caller(request, INFER), services(request)
    path = parse_path(state_path(request, key, (await read_json(request, WeightsInfoBody)).tinker_path))
    readable(request, key, path)
    run = served.store.read(runs.of_anyone, path.run_id)
    lora = run.lora
    parts = {"train_unembed": lora.train_unembed, "train_mlp": lora.train_mlp, "train_attn": lora.train_attn}
    optimizer = {"optimizer_config": {"type": "adamw"}}
    return answer({"base_model": run.base_model, "is_lora": True, "lora_rank": lora.rank, **parts, **optimizer})


def page(request: Request, default_limit: int) -> tuple[int, int]:
    """limit and offset of a listing."""
    try:
        limit, offset = (
            int(request.query_params.get("limit", default_limit)),
            int(request.query_params.get("offset", 0)),
        )
    except ValueError:
        raise BadRequest("limit and offset must be whole numbers.") from None
    # Without a bound the offset could exceed the integers of SQLite, and the fault would look like ours.
    if not (1 <= limit <= 1000 and 0 <= offset < 1 << 31):
        raise BadRequest(f"limit is {limit} and offset {offset}; they must lie in 1 … 1000 and 0 …")
    return limit, offset


def run_json(served: Services, key_id: str, run: RunRow, *, of_others: bool = False) -> dict[str, Any]:
    """A run as the SDK reads it, with the newest checkpoint of each kind; to others only what is public of it."""
    # The store gives the newest first, so the first of each kind is the one to show.
    saved = [row for row in served.store.read(checkpoints.of_run, key_id, run.id) if row.public or not of_others]
    # A run may have checkpoints of one kind only, so each is looked for by itself.
    newest = {kind: next((row for row in saved if row.kind is kind), None) for kind in KINDS}
    training, sampler = newest[CheckpointKind.TRAINING], newest[CheckpointKind.SAMPLER]
    return {
        "training_run_id": run.id,
        "base_model": run.base_model,
        "model_owner": key_id,
        "is_lora": True,
        "corrupted": run.lost is not None,
        "lora_rank": run.lora.rank,
        "last_request_time": moment(run.last_request),
        "last_checkpoint": checkpoint_json(training, of_others=of_others) if training else None,
        "last_sampler_checkpoint": checkpoint_json(sampler, of_others=of_others) if sampler else None,
        "user_metadata": None if of_others else run.user_metadata,
    }


def checkpoint_json(row: CheckpointRow, *, of_others: bool = False) -> dict[str, Any]:
    """A checkpoint as the SDK reads it, with times in ISO 8601 and its size in bytes. Others are not told its metadata,
    which may be private, nor what its owner has planned for it."""
    return {
        "checkpoint_id": row.path.checkpoint_id,
        "checkpoint_type": KINDS[row.kind],
        "time": moment(row.created),
        "tinker_path": str(row.path),
        "size_bytes": row.size_bytes,
        "public": row.public,
        "user_metadata": None if of_others else row.user_metadata,
        "expires_at": moment(row.expires) if row.expires is not None and not of_others else None,
    }


def moment(seconds: float) -> str:
    """Seconds since the epoch as ISO 8601 in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat()


ROUTES = [
    Route("/training_runs", list_runs, methods=["GET"]),
    Route("/training_runs/{run_id}/checkpoints", list_run_checkpoints, methods=["GET"]),
    Route("/training_runs/{run_id}/checkpoints/{kind}/{name}", delete_checkpoint, methods=["DELETE"]),
    Route("/training_runs/{run_id}/checkpoints/{kind}/{name}/ttl", set_ttl, methods=["PUT"]),
    Route("/training_runs/{run_id}", get_run, methods=["GET"]),
    Route("/checkpoints", list_checkpoints, methods=["GET"]),
    Route("/weights_info", weights_info, methods=["POST"]),
]

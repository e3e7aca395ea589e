"""The list of models: bases, aliases, the fine-tuned models of the asking key, then the deployments that it may use; by
pages. A fine-tuned model can be deleted.

In fields that OpenAI's and Anthropic's clients read, and in two of our own what a request gets that says nothing of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loreloop.http.addresses import limit_of
from loreloop.http.audited import entry_of
from loreloop.http.bodies import answer
from loreloop.http.services import INFER, TRAIN, Services, asker, caller, has, may_use, services
from loreloop.protocol.errors import BadRequest, Conflict, NotFound
from loreloop.protocol.jobs import TUNED
from loreloop.protocol.paths import parse_path
from loreloop.protocol.rest import WireSamplingParams
from loreloop.store import audit, checkpoints, deployments, jobs, tuned_models
from loreloop.store.rows import Deployment, KeyRow
from loreloop.text.templates.generation_defaults import DEFAULTED

NEUTRAL: dict[str, float] = {name: getattr(WireSamplingParams(), name) for name in DEFAULTED}


async def models(request: Request) -> Response:
    """The models that the key may ask, by pages."""
    key, served = asker(request), services(request)
    # OpenAI's clients page with `after`, Anthropic's with `after_id`.
    query = request.query_params
    limit, after = limit_of(request), query.get("after") or query.get("after_id", "")
    # One more than the page holds, which tells whether there are more.
    found = list(islice(entries(served, key, after, limit), limit + 1))
    data = found[:limit]
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
    return answer({"object": "list", "data": data, "has_more": len(found) > limit} | ends)


async def model(request: Request) -> Response:
    """One of the list, or any other name that can be asked."""
    key, served, name = asker(request), services(request), request.path_params["model"]
    may_use(key, name)
    is_base = name not in key.deployments and served.names.find_base(name) is not None
    # A key that was given a deployment means that one, even where a base has the same name.
    deployed = None if is_base else served.names.deployment(served.store, key, name)
    if deployed is not None:
        return answer(of_deployment(served, deployed))
    target = served.names.target(served.store, key, name)
    return answer(entry(name, target.label) | own_settings(served, target.base_model))


def entries(served: Services, key: KeyRow, after: str, page: int) -> Iterator[dict[str, Any]]:
    """What stands after the name `after` in the list; the store is read a page at a time, as far as is taken."""
    is_whole = has(key, INFER)
    fixed = served.names.all() if is_whole else []
    if after in fixed:
        fixed_rest, after = fixed[fixed.index(after) + 1 :], ""
    else:
        fixed_rest = [] if after else fixed
    for name in fixed_rest:
        base = served.names.base(name)
        yield entry(name, base) | own_settings(served, base)
    if is_whole and (not after or after.startswith(TUNED)):
        yield from tuned_entries(served, key, after, page)
        after = ""
    hidden = set(fixed)  # a base goes before a deployment of its name
    key_id = key.id if is_whole else None
    while rows := served.store.read(deployments.of_key, key_id, key.deployments, page, after):
        yield from (of_deployment(served, row) for row in rows if row.name not in hidden)
        after = rows[-1].name


def tuned_entries(served: Services, key: KeyRow, after: str, page: int) -> Iterator[dict[str, Any]]:
    """What fine-tuning jobs of the key have made, behind the name `after`."""
    while rows := served.store.read(tuned_models.of_key, key.id, page, after):
        yield from (entry(row.name, row.path, int(row.created)) | own_settings(served, row.base_model) for row in rows)
        after = rows[-1].name


async def delete_model(request: Request) -> Response:
    """Deletes a fine-tuned model with its weights. Conflict where a deployment answers with them."""
    key, served, name = caller(request, TRAIN), services(request), request.path_params["model"]
    if not name.startswith(TUNED):
        raise BadRequest(f"{name[:200]!r} is no fine-tuned model, and others are not deleted here.")
    found = served.store.read(tuned_models.get, key.id, name)
    if job_id := served.store.read(jobs.beginning_at, key.id, found.state_path or found.path):
        raise Conflict(f"The job {job_id} begins at {name}; cancel that, then delete the model.")
    for path in filter(None, (found.path, found.state_path)):
        # What its owner has deleted already is not missed.
        with contextlib.suppress(NotFound):
            entry = entry_of("checkpoint_delete", key, parse_path(path))
            await served.store.write(audit.noting, entry, checkpoints.remove, key.id, parse_path(path))
    served.dispatcher.drop_revision(found.path)
    await served.store.write(tuned_models.remove, key.id, name)
    await served.dispatcher.delete_left_files()
    return answer({"id": name, "object": "model", "deleted": True})


def of_deployment(served: Services, row: Deployment) -> dict[str, Any]:
    """A deployment as an entry of the list; `root` is what it answers with, canaries left aside."""
    main = row.split.main
    return entry(row.name, main.target, int(row.created)) | own_settings(served, main.base_model)


def own_settings(served: Services, base_model: str) -> dict[str, Any]:
    """The window, known once the engine is up, and how chats are drawn; None for a base that is not served now."""
    base = served.names.find_base(base_model)
    if base is None:
        return {"context_window": None, "sampling_defaults": None}
    # A list must not wait for an engine that is still loading.
    info = served.dispatcher.known_info(base)
    model_defaults = served.texts.defaults(served.names.folder(base)) if served.config.generation_config else {}
    return {
        "context_window": info.context_window if info else None,
        "sampling_defaults": NEUTRAL | dict(model_defaults),
    }


def entry(name: str, root: str, created: int = 0) -> dict[str, Any]:
    """`root` is what the name stands for."""
    openai_fields = {"id": name, "object": "model", "created": created, "owned_by": "loreloop", "root": root}
    moment = datetime.fromtimestamp(created, UTC).isoformat().replace("+00:00", "Z")
    # OpenAI's and Anthropic's clients read the same list, each its own fields.
    return openai_fields | {"type": "model", "display_name": name, "created_at": moment}


ROUTES = [
    Route("/models", models, methods=["GET"]),
    Route("/models/{model:path}", model, methods=["GET"]),
]
# OpenAI's API has this alone.
DELETING = [Route("/models/{model:path}", delete_model, methods=["DELETE"])]

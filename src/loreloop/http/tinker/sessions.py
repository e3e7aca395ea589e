"""Tinker routes of a client's life: configuration, sessions, heartbeats, telemetry, what the server can do."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loreloop.config import SdkFlag
from loreloop.http.bodies import answer, read_body, read_json
from loreloop.http.services import INFER, caller, now, services, stands_for_key
from loreloop.protocol.errors import Gone
from loreloop.protocol.rest import CreateSession, FinishSession, Heartbeat
from loreloop.store import sessions
from loreloop.store.rows import SessionNew

DYNAMIC: Final = "sample_cancel_enabled"  # told by the settings that the SDK reads again
# Compressed passes save time on the wire; abandoned samples give their places up; numbers that the server gives to
# copies of a client cannot meet, as drawn ones might. docs/protocol.md says why the others stay at the SDK's defaults.
SDK_FLAGS: dict[SdkFlag, bool] = {
    "proto_compress_fwdbwd": True,
    "sample_cancel_enabled": True,
    "sample_join_sampling_session": True,
}


async def client_config(request: Request) -> Response:
    """What the SDK is to do, where that is not its default."""
    caller(request, INFER)
    flags = SDK_FLAGS | services(request).config.sdk_flags
    if stands_for_key(request):
        flags |= {"pjwt_auth_enabled": False}  # it is exchanged for nothing
    return answer({name: value for name, value in flags.items() if name != DYNAMIC})


async def dynamic_config(request: Request) -> Response:
    """How often, in seconds, the SDK may ask for its settings again."""
    caller(request, INFER)
    cancels = (SDK_FLAGS | services(request).config.sdk_flags)[DYNAMIC]
    return answer({"refresh_interval_sec": 300, DYNAMIC: cancels})


async def capabilities(request: Request) -> Response:
    """The served models with their context windows, in tokens, and whether samplers outside draw for them; waits until
    every engine is up."""
    caller(request, INFER)
    served = services(request)
    models = []
    for name in served.names.all():
        info = await served.dispatcher.info(served.names.base(name))
        models.append(
            {
                "model_name": name,
                "max_context_length": info.context_window,
                "trainable": True,
                "sampleable": True,
                # Of ours: they compute otherwise than the engine that trains, and whoever learns should weigh that.
                "sampled_outside": bool(served.config.engine.samplers),
            }
        )
    return answer({"supported_models": models})


async def create_session(request: Request) -> Response:
    """Opens a session, which ends with its heartbeats: runs, samplers and records belong to it."""
    key = caller(request, INFER)
    body = await read_json(request, CreateSession)
    new = SessionNew(body.tags, body.user_metadata, body.sdk_version, body.project_id, body.display_name)
    return answer({"session_id": await services(request).store.write(sessions.create, key.id, new, now())})


async def heartbeat(request: Request) -> Response:
    """Keeps a session alive; Gone where it has ended already."""
    key = caller(request, INFER)
    body = await read_json(request, Heartbeat)
    status = await services(request).store.write(sessions.touch, key.id, body.session_id, now())
    if status != "active":
        raise Gone(f"The session {body.session_id} has ended; open a new one.")
    return answer({"type": "session_heartbeat"})


async def finish_session(request: Request) -> Response:
    """Ends a session: its samples are cancelled, its models are unloaded. To end it twice changes nothing."""
    key, served = caller(request, INFER), services(request)
    # An unknown session ends as NotFound in the store, as does one of another key.
    session_id = request.path_params["session_id"]
    body = await read_json(request, FinishSession)
    detail = f"{body.reason.type}: {body.detail}" if body.detail else body.reason.type
    # Only the call that ends the session cleans up; a repeated one finds it ended.
    if await served.store.write(sessions.end, key.id, session_id, "finished", detail):
        await served.dispatcher.close_session(session_id)
    return answer({})


async def telemetry(request: Request) -> Response:
    """Accepted and let go: this server keeps no record of its clients' doings."""
    caller(request, INFER)
    await read_body(request)
    return answer({"status": "accepted"})


ROUTES = [
    Route("/client/config", client_config, methods=["POST"]),
    Route("/client/dynamic_config", dynamic_config, methods=["POST"]),
    Route("/get_server_capabilities", capabilities, methods=["GET"]),
    Route("/create_session", create_session, methods=["POST"]),
    Route("/session_heartbeat", heartbeat, methods=["POST"]),
    Route("/sessions/{session_id}/finish", finish_session, methods=["POST"]),
    Route("/telemetry", telemetry, methods=["POST"]),
]

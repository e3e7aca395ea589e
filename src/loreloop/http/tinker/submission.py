"""How a training operation is accepted: built from its body, journaled, acknowledged.

A refused one still uses up its sequence id, since the client has counted on; later operations must not wait for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from loreloop.http.bodies import HEAD_BYTES, answer, read_body
from loreloop.http.services import TRAIN, caller, now, services
from loreloop.protocol.codec import recover_address
from loreloop.protocol.errors import BadRequest, Gone, NotFound, TooLarge, UserError
from loreloop.protocol.paths import request_id
from loreloop.protocol.rest import SeqId
from loreloop.protocol.training import TrainOp
from loreloop.store import runs, sessions
from loreloop.store.rows import Acceptance, AfterOp, KeyRow, RunRow


@dataclass(frozen=True)
class Accepted:
    """An operation, with what shall happen when it has succeeded and what its answer will say."""

    op: TrainOp
    after: tuple[AfterOp, ...] = ()
    reply: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Address:
    """Which place in a model's order a body wants; read leniently, so that refused bodies have one too."""

    model_id: str
    seq_id: int


class _AnyBody(msgspec.Struct):
    model_id: str | None = None
    seq_id: SeqId | None = None


def address_in_json(body: bytes) -> Address | None:
    """The place in a model's order that a JSON body names; None where it names none."""
    try:
        found = msgspec.json.decode(body, type=_AnyBody)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return Address(found.model_id, found.seq_id) if found.model_id and found.seq_id is not None else None


def address_in_protobuf(body: bytes) -> Address | None:
    """The place in a model's order that a protobuf body names, read from its first bytes; None where it names none."""
    place = recover_address(body[:HEAD_BYTES])
    return Address(*place) if place else None


def live_run(request: Request, key: KeyRow, model_id: str) -> RunRow:
    """The run of this key, still in the engine."""
    run = services(request).store.read(runs.get, key.id, model_id)
    if run.lost:
        raise Gone(run.lost)
    if not run.live:
        raise BadRequest(f"The session of {model_id} has ended; create a training client from one of its checkpoints.")
    return run


def active_session(request: Request, key: KeyRow, session_id: str) -> None:
    """BadRequest where the session has ended; NotFound where this key has none of the id."""
    if services(request).store.read(sessions.get, key.id, session_id).status != "active":
        raise BadRequest(f"The session {session_id} has ended; open a new one.")


async def accept(
    request: Request,
    build: Callable[[KeyRow, bytes], Awaitable[Accepted]],
    address_in: Callable[[bytes], Address | None] = address_in_json,
) -> Response:
    """Reads, builds, journals and acknowledges one operation."""
    key = caller(request, TRAIN)
    body = b""
    try:
        body = await read_body(request)
        accepted = await build(key, body)
        await _submit(request, key, body, accepted)
    # Only the user's faults use the place up. After a fault of ours the client sends the same operation again.
    except UserError as error:
        # Of a body that was too large only the beginning was read, and it travels with the error.
        if address := address_in(error.head if isinstance(error, TooLarge) else body):
            await _use_up(request, key, address)
        raise
    return answer({"request_id": accepted.op.request_id, "model_id": accepted.op.model_id})


async def _submit(request: Request, key: KeyRow, body: bytes, accepted: Accepted) -> None:
    from_run = services(request).store.read(runs.get, key.id, accepted.op.model_id)
    served = services(request)
    # By it the journal tells a repeated request from another body under the same sequence id.
    fingerprint = hashlib.sha256(body).hexdigest()
    base_model = served.names.base(from_run.base_model)
    # From here on the operation is on disk, and the client may be told that it will run.
    acceptance = Acceptance(base_model, fingerprint, accepted.after, accepted.reply, now())
    await served.dispatcher.submit(accepted.op, acceptance)


async def _use_up(request: Request, key: KeyRow, address: Address) -> None:
    served = services(request)
    try:
        run = served.store.read(runs.get, key.id, address.model_id)
        place = request_id(address.model_id, address.seq_id)
        await served.dispatcher.skip(address.model_id, address.seq_id, place, served.names.base(run.base_model))
    except (NotFound, BadRequest):
        pass  # not this key's model, or an operation holds the place already

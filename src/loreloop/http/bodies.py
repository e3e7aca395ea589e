"""Reads request bodies within bounds, decompressed, as typed values; writes JSON answers."""

from __future__ import annotations

import asyncio
import contextlib
import io
import re
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec
import zstandard
from starlette.requests import Request
from starlette.responses import Response

from loreloop.http.services import services
from loreloop.protocol.as_sent import advice_of, choices_at, cleaned
from loreloop.protocol.errors import BadRequest, TooLarge

T = TypeVar("T")
S = TypeVar("S", bound=msgspec.Struct)
HEAD_BYTES = 4096
LARGE_BYTES = 1 << 18  # what is smaller is read within some milliseconds
MAX_ENTRIES = 1 << 19  # of all lists and objects in a request for text: reading more would hold everybody up
MAX_EXPLANATION, MAX_QUOTED = 500, 200  # characters of what the library says of a body
# Anthropic's client asks again without the field when it reads this.
DETAILS = {"thread": {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}}
_UNKNOWN = re.compile(r"unknown field `(.+?)`(?: - at `\$(\..+)`)?$")
_PLACE = re.compile(r"- at `(\$.+)`$")


async def read_body(request: Request, most_bytes: int | None = None) -> bytes:
    """The whole body; TooLarge as soon as it exceeds the limit, compressed or not. `most_bytes` is a route's own limit,
    where it takes less than the server does."""
    limit_bytes = services(request).config.limits.body_mib << 20
    is_routes = most_bytes is not None and most_bytes < limit_bytes
    limit_bytes = most_bytes if most_bytes is not None and is_routes else limit_bytes
    parts: list[bytes] = []
    n_bytes = 0
    async for part in request.stream():
        n_bytes += len(part)
        parts.append(part)
        # The check comes with every part, so that a body without a declared length cannot fill the memory first.
        if n_bytes > limit_bytes:
            raise _too_large(limit_bytes, b"".join(parts), is_routes=is_routes)
    body = b"".join(parts)
    encoding = request.headers.get("content-encoding", "identity")
    if encoding == "identity":
        return body
    if encoding != "zstd":
        raise BadRequest(f"The content encoding {encoding!r} is not understood; send zstd or none.")
    plain = _unzstd(body, limit_bytes)
    if len(plain) > limit_bytes:
        raise _too_large(limit_bytes, plain, is_routes=is_routes)
    return plain


def _unzstd(body: bytes, limit_bytes: int) -> bytes:
    """The body unpacked, up to one byte more than the limit."""
    try:
        # The window is bounded as well as the result: a frame's header alone could otherwise demand gigabytes.
        with zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(io.BytesIO(body)) as reader:
            # One byte over the limit is enough to know that there is more, and keeps a bomb of zeros from being
            # unpacked.
            return reader.read(limit_bytes + 1)
    except zstandard.ZstdError as error:
        raise BadRequest(f"The body claims to be zstd and is not: {error}.") from None


def _too_large(limit_bytes: int, body: bytes, *, is_routes: bool) -> TooLarge:
    if is_routes:
        return TooLarge(
            f"The body exceeds {limit_bytes >> 10} KiB, which is more than this takes; send less.", body[:HEAD_BYTES]
        )
    return TooLarge(
        f"The body exceeds {limit_bytes >> 20} MiB; send smaller batches, or raise limits.body_mib on the server.",
        body[:HEAD_BYTES],
    )


def decode(body: bytes, kind: type[T]) -> T:
    """JSON as a value of `kind`; BadRequest names the field that is wrong."""
    with _explained(kind):
        return msgspec.json.decode(body or b"{}", type=kind)


def decode_as_sent(body: bytes, kind: type[S]) -> S:
    """The same for a dialect's request, without its nulls and notes where it holds any that are no field."""
    # The strict way is the fast one and fits nearly all requests. Only where it fails is the body decoded a second
    # time, into plain values from which nulls and unknown notes can be removed.
    with contextlib.suppress(msgspec.ValidationError), _explained_as_json():
        return msgspec.json.decode(body or b"{}", type=kind)
    with _explained(kind):
        return msgspec.convert(cleaned(msgspec.json.decode(body or b"{}"), kind), kind)


@contextlib.contextmanager
def _explained(kind: type) -> Iterator[None]:
    """BadRequest for what the library says of a body."""
    try:
        with _explained_as_json():
            yield
    except msgspec.ValidationError as error:
        explanation = _short(str(error))
        unknown = _UNKNOWN.search(explanation)
        raise BadRequest(_in_words(explanation, kind), DETAILS.get(unknown[1]) if unknown else None) from None


@contextlib.contextmanager
def _explained_as_json() -> Iterator[None]:
    try:
        yield
    # A validation error is a kind of decode error, and has its own, better explanation further up.
    except msgspec.ValidationError:
        raise
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"The body is not JSON: {error}.") from None
    except RecursionError:
        raise BadRequest("The body is nested too deeply.") from None


def _short(error: str) -> str:
    """What the library quotes of a body, names and words, may be as long as that; the place behind it is not."""
    if len(error) <= MAX_EXPLANATION:
        return error
    words, sign, place = error.rpartition(" - at `$")
    words = words if sign else error
    return f"{words[:MAX_QUOTED]}…{words[-1:]}" + (f"{sign}{place[:MAX_QUOTED]}" if sign else "")


def _in_words(error: str, kind: type) -> str:
    """The library's words, and what is served in that place or what to do instead."""
    if unknown := _UNKNOWN.search(error):
        if not unknown[2]:
            return f"The field `{unknown[1]}` is not served here; {advice_of(kind, unknown[1])}."
        return f"The field `{unknown[1]}` is not served here (in `{unknown[2][1:]}`); leave it out."
    place = _PLACE.search(error)
    served = ", ".join(choices_at(kind, place[1])) if place else ""
    return f"The request is wrong: {error}." + (f" Here it is one of: {served}." if served else "")


async def read_json(request: Request, kind: type[T], most_bytes: int | None = None) -> T:
    """The body as a value of `kind`; BadRequest and TooLarge as `read_body` and `decode` raise them."""
    return decode(await read_body(request, most_bytes), kind)


async def read_as_sent(request: Request, kind: type[S]) -> S:
    """A dialect's request. Its commas are bounded, which are quickly counted and no fewer than what it is made of."""
    body = await read_body(request)
    if body.count(b",") > MAX_ENTRIES:
        raise TooLarge(f"The body has over {MAX_ENTRIES} commas: too many messages, tools or ids for one request.")
    if len(body) <= LARGE_BYTES:
        return decode_as_sent(body, kind)
    return await asyncio.to_thread(decode_as_sent, body, kind)  # others are served meanwhile


def answer(value: Any, status_code: int = 200) -> Response:
    """An HTTP response whose body is `value` as JSON."""
    return Response(msgspec.json.encode(value), status_code, media_type="application/json")

"""Memories under `/loop/v1`: a key lists, shows, changes and deletes its own, those of each user apart."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loreloop.http.addresses import limit_of
from loreloop.http.bodies import answer, read_json
from loreloop.http.generation.remembered import memory_summary, opened, parts_with
from loreloop.http.services import Services, asker, now, services
from loreloop.memory.kept import KeptMemory, changed_by_hand, closed, to_bytes
from loreloop.memory.memory import Forgotten, Memory, Parts
from loreloop.memory.state import Segment, text_of
from loreloop.protocol.errors import BadRequest, NotFound
from loreloop.protocol.loop_rest import ForgetMemory, ResizeMemory
from loreloop.protocol.memories import Saved
from loreloop.store import memories
from loreloop.store.rows import MemoryName, MemoryRow

USUAL_PAGE, MAX_PAGE = 20, 100


async def list_memories(request: Request) -> Response:
    """The memories of the asking key and of one user, a page at a time."""
    key, user, limit = asker(request), user_of(request), limit_of(request, USUAL_PAGE, MAX_PAGE)
    offset = request.query_params.get("offset", "0")
    if not offset.isdecimal() or len(offset) > 9:
        raise BadRequest(f"offset is {offset[:20]!r}; it must be a whole number of 0 or more.")
    page = services(request).store.read(memories.list_page, key.id, user, limit, int(offset))
    return answer({"memories": [row_json(row) for row in page.rows], "total": page.total})


async def get_memory(request: Request) -> Response:
    """One memory with its segments and its text."""
    name = name_of(request)
    saved = saved_of(services(request), name)
    return answer(await asyncio.to_thread(memory_json, name, saved))


async def forget(request: Request) -> Response:
    """Takes a turn, or what matches a pattern, out of a memory, with all that was made of it, and says what went."""
    name = name_of(request)
    body, gone = await read_json(request, ForgetMemory), list[Forgotten]()

    def change(memory: Memory) -> None:
        gone.append(memory.forget(turn=body.turn, pattern=body.pattern))

    fields = await changed(services(request), name, change)
    return answer(
        fields | {"forgotten": {"turns": gone[0].turns, "segments": list(map(segment_json, gone[0].segments))}}
    )


async def resize(request: Request) -> Response:
    """Gives a memory another budget of tokens; BadRequest where its pins do not fit into it."""
    name = name_of(request)
    body = await read_json(request, ResizeMemory)
    return answer(await changed(services(request), name, lambda memory: memory.resize(body.budget_tokens)))


async def delete_memory(request: Request) -> Response:
    """Deletes a memory; a request on it that is under way finds it gone."""
    name = name_of(request)
    if not await services(request).store.write(memories.remove, name):
        raise unknown(name)
    return answer({"id": name.id, "deleted": True})


def name_of(request: Request) -> MemoryName:
    """Whose memory the path names: the asking key's, of the user in the query."""
    key = asker(request)
    return MemoryName(key.id, user_of(request), str(request.path_params["id"]))


def user_of(request: Request) -> str:
    """The user in the query; a memory without one belongs to the key alone."""
    return request.query_params.get("user", "")


def saved_of(served: Services, name: MemoryName) -> Saved:
    """The stored row; NotFound where the key and user have no such memory."""
    saved = served.store.read(memories.load, name)
    if saved is None:
        raise unknown(name)
    return saved


def unknown(name: MemoryName) -> NotFound:
    """The refusal for a memory that this key and user do not have, whoever else may have one of that name."""
    whose = f"the user {name.user[:80]!r} of this key" if name.user else "this key without a user"
    return NotFound(f"There is no memory {name.id[:80]!r} of {whose}; a chat that names it begins one.")


async def changed(served: Services, name: MemoryName, change: Callable[[Memory], None]) -> dict[str, Any]:
    """Raises Conflict where a request has saved the memory meanwhile. An exchange that is open is given up: what was
    said in it may be what is to go."""
    saved = saved_of(served, name)

    def work() -> KeptMemory:
        kept = opened(name.id, saved)
        parts = parts_of(served, kept)
        kept = closed(kept, parts)
        memory = Memory(kept.state, parts)
        change(memory)
        return changed_by_hand(kept, memory.state)

    after = await asyncio.to_thread(work)
    stored = await served.store.write(memories.save, name, Saved(to_bytes(after), saved.revision), now())
    return memory_summary(name.id, after, stored.revision)


def parts_of(served: Services, kept: KeptMemory) -> Parts:
    """The tokenizer is asked for when something must be counted: forgetting goes without the base model."""
    return parts_with(lambda text: served.texts.of(served.names.folder(kept.counted_by)).tokenizer.count(text))


def row_json(row: MemoryRow) -> dict[str, Any]:
    """A memory in a list: its name, revision, times in Unix seconds, and size in bytes."""
    return {
        "id": row.name.id,
        "user": row.name.user or None,
        "revision": row.revision,
        "created": row.created,
        "saved": row.saved,
        "bytes": row.n_bytes,
    }


def memory_json(name: MemoryName, saved: Saved) -> dict[str, Any]:
    """A memory in full, as the route for one memory gives it."""
    kept = opened(name.id, saved)
    return memory_summary(name.id, kept, saved.revision) | {
        "user": name.user or None,
        "counted_by": kept.counted_by,
        "text": text_of(kept.state),
        "segments": [segment_json(segment) for segment in kept.state.segments],
        "open": [{"role": turn.role, "text": turn.content, "calls": turn.calls} for turn in kept.open],
        "costs": msgspec.to_builtins(kept.state.costs),
    }


def segment_json(segment: Segment) -> dict[str, Any]:
    """One segment: its text, tokens, the turns it came from, and how often it was rewritten."""
    return {
        "id": segment.id,
        "role": segment.role,
        "text": f"{segment.head}{segment.text}",
        "tokens": segment.tokens,
        "form": segment.form,
        "turns": segment.turns,
        "rewrites": segment.rewrites,
        "pinned": segment.pinned,
    }


ROUTES = [
    Route("/memories", list_memories, methods=["GET"]),
    Route("/memories/{id}", get_memory, methods=["GET"]),
    Route("/memories/{id}", delete_memory, methods=["DELETE"]),
    Route("/memories/{id}/forget", forget, methods=["POST"]),
    Route("/memories/{id}/resize", resize, methods=["POST"]),
]

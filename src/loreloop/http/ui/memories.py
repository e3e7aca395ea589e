"""Pages of memories: those of the visitor's own key, of whichever user, as coloured segments, of which what was said in
a turn, or is about some words, can be forgotten."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from loreloop.http.addresses import limit_of, number_of
from loreloop.http.operations.memories import changed, memory_json, row_json, saved_of, segment_json, unknown
from loreloop.http.services import asker, services
from loreloop.http.ui.frame import page_route
from loreloop.http.ui.rendering import render
from loreloop.http.ui.visits import form
from loreloop.memory.memory import Forgotten, Memory
from loreloop.protocol.errors import BadRequest
from loreloop.store import memories
from loreloop.store.rows import MemoryName

USUAL_PAGE, MAX_PAGE = 100, 1000
MOST_SEGMENTS = 1000  # shown of one memory; the JSON has all
BAR_WIDTH = 1000  # of the picture, for the whole budget


async def memories_page(request: Request) -> Response:
    """The memories of the key, those that were saved last first."""
    key, store = asker(request), services(request).store
    limit, offset = limit_of(request, USUAL_PAGE, MAX_PAGE), number_of(request, "offset")
    page = await store.read_apart(memories.list_page, key.id, None, limit, offset)
    data = {"memories": [row_json(row) for row in page.rows], "total": page.total, "offset": offset, "limit": limit}
    return render(request, "memories.html", data)


async def memory_page(request: Request) -> Response:
    """One memory: what is kept of which turns, in which form."""
    return await show_memory(request, named(request), None)


async def show_memory(request: Request, name: MemoryName, gone: Forgotten | None) -> Response:
    """The page of a memory, with what was forgotten just now."""
    data = await asyncio.to_thread(memory_json, name, saved_of(services(request), name))
    forgotten = None if gone is None else {"turns": gone.turns, "segments": list(map(segment_json, gone.segments))}
    drawn = {"bar": bar_of(data), "bar_width": BAR_WIDTH, "most": MOST_SEGMENTS}
    return render(request, "memory.html", data | {"forgotten": forgotten}, drawn)


def bar_of(data: dict[str, Any]) -> list[dict[str, Any]]:
    """The segments beside one another, each as wide as its share of the budget."""
    found, at = list[dict[str, Any]](), 0.0
    for segment in data["segments"]:
        width = BAR_WIDTH * segment["tokens"] / max(data["budget_tokens"], 1)
        found.append({"at": at, "width": width, "kind": kind_of(segment), "id": segment["id"]})
        at += width
    return found


def kind_of(segment: dict[str, Any]) -> str:
    """By which a segment gets its colour: a pin counts before the form."""
    return "pinned" if segment["pinned"] else str(segment["form"])


async def forget_turn(request: Request) -> Response:
    """Takes a turn, or what some words are about, out of a memory, as the route for programs does."""
    asker(request)
    fields = {field: values[0] for field, values in (await form(request)).items()}
    name, gone = named(request), list[Forgotten]()
    turn, pattern = fields.get("turn", "").strip(), fields.get("pattern", "").strip()
    if turn and not (turn.isdecimal() and len(turn) < 10):
        raise BadRequest(f"turn is {turn[:20]!r}; it must be the number of a turn.")

    def change(memory: Memory) -> None:
        gone.append(memory.forget(turn=int(turn) if turn else None, pattern=pattern))

    await changed(services(request), name, change)
    return await show_memory(request, name, gone[0])


async def delete_memory(request: Request) -> Response:
    """Deletes a memory whole."""
    asker(request)
    await form(request)
    name = named(request)
    if not await services(request).store.write(memories.remove, name):
        raise unknown(name)
    return RedirectResponse("/ui/memories", 303)


def named(request: Request) -> MemoryName:
    """The memory that the address names, of the visitor's key and of nobody else's."""
    return MemoryName(asker(request).id, request.query_params.get("user", ""), request.query_params.get("id", ""))


ROUTES = [
    page_route("/memories", memories_page),
    page_route("/memory", memory_page),
    page_route("/memory/forget", forget_turn, "POST"),
    page_route("/memory/delete", delete_memory, "POST"),
]

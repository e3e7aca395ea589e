"""Answers of the responses API that can be referred to: told again, deleted, and gone on from, each by its own key.

Knows items as they came and answers as they went, not how they are made.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loreloop.http.bodies import answer
from loreloop.http.services import Services, asker, now, services
from loreloop.protocol.as_sent import cleaned
from loreloop.protocol.errors import BadRequest, NotFound, ServerError
from loreloop.protocol.openai_rest import MAX_TURNS
from loreloop.protocol.responses_rest import CreateResponse, InputText, Item
from loreloop.store import responses
from loreloop.store.rows import KeptResponse

WHY = (
    "it is of another key, was not kept (store: false), was deleted, or has been let go since: of each key the last "
    f"{responses.MAX_KEPT} are kept as far as they fit, for 30 days"
)
_ITEM = re.compile(r"[a-z]+_([0-9a-f]{32})_(?:in)?\d+")  # an id that was given here
MAX_PAGE = 100


@dataclass(frozen=True)
class Recalled:
    """`earlier` are the items of the answers before, `new` those of this request; `chain` the ids of those answers."""

    earlier: tuple[Item, ...]
    new: tuple[Item, ...]
    chain: tuple[str, ...]

    @property
    def items(self) -> tuple[Item, ...]:
        return (*self.earlier, *self.new)


def recalled(served: Services, key_id: str, body: CreateResponse) -> Recalled:
    """What a request refers to, put in its place; BadRequest says what to do where that is not here."""
    chain = chain_of(served, key_id, body.previous_response_id) if body.previous_response_id else []
    earlier = tuple(item_of(item) for kept in chain for item in items_of(kept, with_answer=True))
    sent = body.input
    given = (Item(role="user", content=(InputText(sent),)),) if isinstance(sent, str) else sent
    new = tuple(_referred(served, key_id, item, earlier) if item.type == "item_reference" else item for item in given)
    if len(earlier) + len(new) > MAX_TURNS:
        raise BadRequest(f"The input and the answers before it have over {MAX_TURNS} items; send a shorter input.")
    return Recalled(earlier, new, tuple(kept.id for kept in chain))


def chain_of(served: Services, key_id: str, response_id: str) -> list[KeptResponse]:
    """A kept answer behind all those that it goes on from, the first one first."""
    chain: list[KeptResponse] = []
    wanted: str | None = response_id
    while wanted is not None:
        kept = served.store.read(responses.find, key_id, wanted)
        if kept is None:
            through = f", through {response_id!r}" if wanted != response_id else ""
            raise BadRequest(
                f"previous_response_id names {wanted[:80]!r}{through}, which is not here: {WHY}. "
                "Send the whole input without it."
            )
        chain.append(kept)
        wanted = kept.previous
    return chain[::-1]


def _referred(served: Services, key_id: str, reference: Item, earlier: Sequence[Item]) -> Item:
    wanted = reference.id or ""
    for item in earlier:
        if item.id == wanted:
            return item
    named = _ITEM.fullmatch(wanted)
    kept = served.store.read(responses.find, key_id, f"resp_{named[1]}") if named else None
    for found in items_of(kept, with_answer=True) if kept else []:
        if found["id"] == wanted:
            return item_of(found)
    raise BadRequest(
        f"The input refers to the item {wanted[:80]!r}, which is not here: {WHY}. Send the item itself (a client that "
        "is told store: false does)."
    )


def items_of(kept: KeptResponse, *, with_answer: bool) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = msgspec.json.decode(kept.input)
    return items + (msgspec.json.decode(kept.answer)["output"] if with_answer else [])


def item_of(value: dict[str, Any]) -> Item:
    return msgspec.convert(cleaned(value, Item), Item)


async def keep(served: Services, key_id: str, body: CreateResponse, found: Recalled, told: dict[str, Any]) -> bool:
    """Keeps an answer, if that is wanted and possible; `told` is it in JSON's values."""
    most_bytes = served.config.limits.kept_responses_mib << 20
    if body.store is False or not most_bytes:
        return False
    number = told["id"].removeprefix("resp_")
    items = [_told(item, f"msg_{number}_in{at}") for at, item in enumerate(found.new)]
    texts = (msgspec.json.encode(value).decode() for value in (items, told | {"store": True}))
    row = KeptResponse(told["id"], key_id, now(), body.previous_response_id, *texts)
    if row.n_bytes > most_bytes:
        return False
    try:
        await served.store.write(responses.keep, row, found.chain, most_bytes)
    except ServerError:
        return False  # of a full disk, say: the answer is there all the same
    return True


def _told(item: Item, own_id: str) -> dict[str, Any]:
    fields = {name: value for name, value in msgspec.to_builtins(item).items() if value is not None}
    return {"id": own_id, **fields}


# routes


async def retrieve(request: Request) -> Response:
    kept = _kept(request)
    if request.query_params.get("stream", "false").lower() == "true":
        raise BadRequest("A kept answer is told whole, not as a stream; leave stream out.")
    return answer(msgspec.json.decode(kept.answer))


async def delete(request: Request) -> Response:
    kept = _kept(request)
    await services(request).store.write(responses.remove, kept.key_id, kept.id)
    return answer({"id": kept.id, "object": "response", "deleted": True})


async def cancel(request: Request) -> Response:
    kept = _kept(request)
    raise BadRequest(f"{kept.id} is finished; nothing runs in the background here. Leaving a stream ends its answer.")


async def input_items(request: Request) -> Response:
    """What the model saw, by pages: also what came with the answers before."""
    kept, query = _kept(request), request.query_params
    before = chain_of(services(request), kept.key_id, kept.previous) if kept.previous else []
    items = [item for one in before for item in items_of(one, with_answer=True)] + items_of(kept, with_answer=False)
    if query.get("order", "desc") != "asc":
        items.reverse()
    after = query.get("after")
    first = next((at + 1 for at, item in enumerate(items) if item["id"] == after), 0) if after else 0
    limit = query.get("limit", "20")
    n_shown = min(int(limit), MAX_PAGE) if limit.isascii() and limit.isdigit() else 20
    page = items[first : first + max(n_shown, 1)]
    ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": None, "last_id": None}
    return answer({"object": "list", "data": page, "has_more": first + len(page) < len(items), **ends})


def _kept(request: Request) -> KeptResponse:
    key, response_id = asker(request), request.path_params["response_id"]
    kept = services(request).store.read(responses.find, key.id, response_id)
    if kept is None:
        raise NotFound(f"There is no response {response_id[:80]!r} here: {WHY}.")
    return kept


ROUTES = [
    Route("/responses/{response_id}", retrieve, methods=["GET"]),
    Route("/responses/{response_id}", delete, methods=["DELETE"]),
    Route("/responses/{response_id}/cancel", cancel, methods=["POST"]),
    Route("/responses/{response_id}/input_items", input_items, methods=["GET"]),
]

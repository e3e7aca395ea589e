"""Answers of the responses API that can be referred to: told again, deleted, and gone on from, each by its own key.

Knows items as they came and answers as they went, not how they are made.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loreloop.http.addresses import limit_of
from loreloop.http.bodies import LARGE_BYTES, answer
from loreloop.http.services import Services, asker, now, services
from loreloop.protocol.as_sent import cleaned
from loreloop.protocol.errors import BadRequest, NotFound, OutOfService, ServerError
from loreloop.protocol.openai_rest import MAX_TURNS
from loreloop.protocol.responses_rest import CreateResponse, InputText, Item
from loreloop.store import responses
from loreloop.store.deleted import Begun
from loreloop.store.rows import KeptResponse

WHY = (
    "it is of another key, was not kept (store: false), was deleted, or has been let go since: of each key the last "
    f"{responses.MAX_KEPT} are kept as far as they fit, for 30 days"
)
_ITEM = re.compile(r"[a-z]+_([0-9a-f]{32})_(?:in)?\d+")  # an id that was given here
MAX_PAGE = 100


@dataclass(frozen=True)
class Recalled:
    """`earlier` are the items of the answers before, `new` those of this request; `used` the ids of all answers that it
    goes on from or takes an item of."""

    earlier: tuple[Item, ...]
    new: tuple[Item, ...]
    used: tuple[str, ...]

    @property
    def items(self) -> tuple[Item, ...]:
        """All items of the conversation in their order."""
        return (*self.earlier, *self.new)


async def recalled(served: Services, key_id: str, body: CreateResponse) -> Recalled:
    """What a request refers to, put in its place; BadRequest says what to do where that is not here."""
    # The chain is the earlier answers from the first to the one that the request names.
    chain = _chain_before(served, key_id, body.previous_response_id) if body.previous_response_id else []
    body_input = body.input
    items = (Item(role="user", content=(InputText(body_input),)),) if isinstance(body_input, str) else body_input
    wanted = {_answer_with(item.id or "") for item in items if item.type == "item_reference"}
    referred = served.store.read(responses.find_all, key_id, wanted)
    place_items = partial(_put_in_place, items, chain, referred)
    # Decoding a long conversation takes the event loop's time, and goes into a thread instead.
    is_small = sum(len(kept.input) + len(kept.answer) for kept in (*chain, *referred)) <= LARGE_BYTES
    return place_items() if is_small else await asyncio.to_thread(place_items)  # others are served meanwhile


def _chain_before(served: Services, key_id: str, response_id: str) -> list[KeptResponse]:
    chain = served.store.read(responses.chain, key_id, response_id)
    # The first of the chain has nothing before it, unless what came before has been let go.
    missing = chain[0].previous if chain else response_id
    if missing is not None:
        through = f", through {response_id!r}" if chain else ""
        raise BadRequest(
            f"previous_response_id names {missing[:80]!r}{through}, which is not here: {WHY}. "
            "Send the whole input without it."
        )
    return chain


def _answer_with(item_id: str) -> str:
    """The id of the answer with which an item got its own; empty where that was not given here."""
    # An item's id holds its answer's digits, so no table of items is needed.
    named = _ITEM.fullmatch(item_id)
    return f"resp_{named[1]}" if named else ""


def _put_in_place(items: Sequence[Item], chain: Sequence[KeptResponse], referred: Sequence[KeptResponse]) -> Recalled:
    """`referred` are the answers of items that are referred to. Each can be referred to once, as with OpenAI, so that a
    short request does not become a huge one."""
    earlier = [item_of(value) for kept in chain for value in items_of(kept, with_answer=True)]
    # Reversed, so that of two items with the same id the earlier one is found.
    before = {item.id: item for item in reversed(earlier)}
    others = {(kept.id, value["id"]): value for kept in referred for value in items_of(kept, with_answer=True)}
    new: list[Item] = []
    placed: set[str] = set()
    for item in items:
        if item.type == "item_reference":
            wanted = item.id or ""
            if wanted in placed:
                raise BadRequest(f"The input refers to the item {wanted[:80]!r} twice; send each once.")
            placed.add(wanted)
            other = others.get((_answer_with(wanted), wanted))
            item = before.get(wanted) or _here(wanted, other)
        new.append(item)
    # The bound holds for both together: a chain of short requests may have become a long conversation.
    if len(earlier) + len(new) > MAX_TURNS:
        raise BadRequest(f"The input and the answers before it have over {MAX_TURNS} items; send a shorter input.")
    return Recalled(tuple(earlier), tuple(new), tuple({kept.id for kept in (*chain, *referred)}))


def _here(item_id: str, value: dict[str, Any] | None) -> Item:
    if value is None:
        raise BadRequest(
            f"The input refers to the item {item_id[:80]!r}, which is not here: {WHY}. Send the item itself (a client "
            "that is told store: false does)."
        )
    return item_of(value)


def items_of(kept: KeptResponse, *, with_answer: bool) -> list[dict[str, Any]]:
    """The items that came with a kept request, with `with_answer` also those of its answer, as JSON's values."""
    items: list[dict[str, Any]] = msgspec.json.decode(kept.input)
    return items + (msgspec.json.decode(kept.answer)["output"] if with_answer else [])


def item_of(value: dict[str, Any]) -> Item:
    """A kept item as the typed value of an input item."""
    return msgspec.convert(cleaned(value, Item), Item)


async def keep(served: Services, begun: Begun, body: CreateResponse, found: Recalled, response: dict[str, Any]) -> bool:
    """Keeps an answer, if that is wanted and possible; `response` is it in JSON's values, and `begun` says whose it is,
    and since when it was on its way."""
    most_bytes = served.config.limits.kept_responses_mib << 20
    if body.store is False or not most_bytes:
        return False
    number = response["id"].removeprefix("resp_")
    # Every item gets an id of its own before it is kept, so that it can be referred to later.
    items = [_with_id(item, f"msg_{number}_in{index}") for index, item in enumerate(found.new)]
    # Only this request's own items are stored; the chain of earlier answers brings the others.
    row = KeptResponse(
        id=response["id"],
        key_id=begun.person.key_id,
        created=now(),
        previous=body.previous_response_id,
        input=msgspec.json.encode(items).decode(),
        answer=msgspec.json.encode(response | {"store": True}).decode(),
    )
    # One answer alone is over the limit, and all others would have to go for it.
    if row.n_bytes > most_bytes:
        return False
    try:
        return await served.store.write(responses.keep_unless_deleted, row, found.used, most_bytes, begun)
    except (ServerError, OutOfService):
        return False  # the second: the disk is full; the answer is there all the same


def _with_id(item: Item, own_id: str) -> dict[str, Any]:
    fields = {name: value for name, value in msgspec.to_builtins(item).items() if value is not None}
    return {"id": own_id, **fields}


# routes


async def retrieve(request: Request) -> Response:
    """A kept answer, whole."""
    kept = _kept(request)
    if request.query_params.get("stream", "false").lower() == "true":
        raise BadRequest("A kept answer is told whole, not as a stream; leave stream out.")
    return answer(msgspec.json.decode(kept.answer))


async def delete(request: Request) -> Response:
    """Deletes a kept answer; answers that go on from it can then no longer be gone on from."""
    kept = _kept(request)
    await services(request).store.write(responses.remove, kept.key_id, kept.id)
    return answer({"id": kept.id, "object": "response", "deleted": True})


async def cancel(request: Request) -> Response:
    """BadRequest: no answer is made in the background, so there is never one to cancel."""
    kept = _kept(request)
    raise BadRequest(f"{kept.id} is finished; nothing runs in the background here. Leaving a stream ends its answer.")


async def input_items(request: Request) -> Response:
    """What the model saw, by pages: also what came with the answers before."""
    kept, query, limit = _kept(request), request.query_params, limit_of(request, 20, MAX_PAGE)
    order, after = query.get("order", "desc"), query.get("after")
    if order not in ("asc", "desc"):
        raise BadRequest(f"order is {order[:20]!r}; it must be asc or desc.")
    chain = services(request).store.read(responses.chain, kept.key_id, kept.id)
    if chain[0].previous is not None:
        raise NotFound(f"{kept.id} goes on from {chain[0].previous!r}, which is not here: {WHY}.")
    items = [item for one in chain for item in items_of(one, with_answer=one.id != kept.id)]
    # The newest first is OpenAI's default.
    if order == "desc":
        items.reverse()
    places = [index for index, item in enumerate(items) if item["id"] == after]
    if after and not places:
        raise BadRequest(f"after names {after[:80]!r}, which is no input item of {kept.id}.")
    first = places[-1] + 1 if places else 0  # the last: a client's own ids may stand there twice
    # A page is cut out of the whole list, because its items lie within several kept answers.
    page = items[first : first + limit]
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

"""A memory in the place of the past: what a model is sent, and the turn that is kept when its answer is there.

Of two requests on one memory at once the second is refused. Knows no dialect's bodies beyond the field that names a
memory, and not how a memory is made.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

from starlette.requests import Request
from starlette.types import Scope

from loreloop.http.generation.chat import ChatRequest
from loreloop.http.generation.memory_named import Clock, Wanted, captioned, notes_of
from loreloop.http.generation.requests import Model
from loreloop.http.services import Services, now, services
from loreloop.memory.importance import SurfaceImportance
from loreloop.memory.kept import (
    Asked,
    KeptMemory,
    Note,
    asked_of,
    check_notes,
    closed,
    counted_anew,
    from_bytes,
    gone_back,
    last_time_of,
    prompt_turns,
    to_bytes,
    with_answer,
)
from loreloop.memory.memory import Parts
from loreloop.memory.refill import ExtractiveRefill
from loreloop.memory.state import MemoryState
from loreloop.protocol.errors import BadRequest, Conflict, LoreloopError, ServerError
from loreloop.protocol.memories import Saved
from loreloop.protocol.openai_rest import MemoryField
from loreloop.store.memories import MemoriesOf, check_name
from loreloop.store.rows import MemoryName
from loreloop.text.conversation import MadeCall, Turn
from loreloop.text.replies import WholeReply, new_call_id
from loreloop.text.tokenizer import TextTokenizer

LOG = logging.getLogger(__name__)
STATE = "memory_turn"  # in the request's state, for the end of the request


class Remembering:
    """One request: `ask` is what its model is asked, with a memory in the place of the past if it names one."""

    def __init__(self, chat_request: ChatRequest, turn: MemoryTurn | None = None) -> None:
        self.chat_request, self.turn = chat_request, turn

    async def keep(
        self, *, made: tuple[Turn, ...] = (), whole: WholeReply | None = None, warning: str | None = None
    ) -> dict[str, Any]:
        """Keeps the turn with the answer (`whole`, or what was heard), and gives what the answer tells of it, with the
        `warning` that it has anyway. `made` are calls and results between the question and the answer."""
        if self.turn is None:
            return {}
        memory = await self.turn.keep((*made, answer_of(self.chat_request, whole)))
        noted = [note for note in (warning, self.turn.warning) if note]
        return {"memory": memory} | ({"warning": " ".join(noted)} if noted else {})


def answer_of(chat_request: ChatRequest, whole: WholeReply | None = None, *, cut: bool = False) -> Turn:
    """What was heard, behind how the answer began. Calls that were cut off nobody can answer."""
    whole = whole or chat_request.collected or WholeReply()
    calls = () if cut else tuple(whole.calls[:-1] if whole.cut else whole.calls)
    made = tuple(MadeCall(call.call_id or new_call_id(), call.name, call.arguments) for call in calls)
    return Turn("assistant", chat_request.conversation.begun + whole.content, calls=made)


async def remembering(request: Request, model: Model, chat_request: ChatRequest, wanted: Wanted) -> Remembering:
    """Raises Conflict while another request is on the same memory; both end by `end_of_turn`."""
    turn = _turn(request, model, wanted)
    if turn is None:
        return Remembering(chat_request)
    if chat_request.n > 1:
        raise BadRequest("A remembered turn has one answer, and n asks for several; leave n or the memory out.")
    busy = services(request).remembering
    if turn.name in busy:
        raise Conflict(
            f"Another request is on memory {turn.name.id!r} just now. Nothing was sampled; send this one again when "
            "the other has its answer."
        )
    busy.add(turn.name)
    request.scope["state"][STATE] = turn
    turn.chat_request = await asyncio.to_thread(turn.begin, replace(chat_request, collected=WholeReply()))
    return Remembering(turn.chat_request, turn)


async def recalled_request(request: Request, model: Model, chat_request: ChatRequest, wanted: Wanted) -> ChatRequest:
    """What would be asked, for who counts it; nothing is kept."""
    turn = _turn(request, model, wanted)
    return chat_request if turn is None else await asyncio.to_thread(turn.begin, chat_request)


def _turn(request: Request, model: Model, wanted: Wanted) -> MemoryTurn | None:
    field = wanted.of(request)
    if field is None:
        return None
    # Users who are told apart by anything else than a text would share the memories of the key's own.
    if wanted.user is not None and not isinstance(wanted.user, str):
        raise BadRequest(
            f"A memory belongs to a user who is named by a text, and {str(wanted.user)[:40]!r} is "
            f"{type(wanted.user).__name__}; send the user as a string, or leave it out."
        )
    name = MemoryName(model.owner, wanted.user or "", field.id)
    check_name(name)
    return MemoryTurn(services(request), model, name, field)


async def end_of_turn(scope: Scope, *, left: bool) -> None:
    """At the end of every request, however it ended. Of an answer whose client has `left` in the midst of it, what was
    shown is kept."""
    turn: MemoryTurn | None = scope["state"].pop(STATE, None)
    if turn is not None:
        await turn.end(left=left)


class MemoryTurn:
    """A turn under way on one memory. `begin` and `_finish` run in a thread: they count tokens and edit."""

    def __init__(self, served: Services, model: Model, name: MemoryName, field: MemoryField) -> None:
        self.served, self.model, self.name, self.field = served, model, name, field
        tokenizer = model.text.tokenizer
        self.parts = Parts(tokenizer.count, SurfaceImportance(), refill_by(tokenizer))
        self.kept = KeptMemory(state=MemoryState(1), counted_by=model.target.base_model)
        self.revision, self.began = 0, now()
        self.asked: Asked | None = None
        self.notes: list[Note] = []
        self.time: float | None = None  # of the new turns, and of the answer
        self.chat_request: ChatRequest | None = None
        self.saving: asyncio.Future[None] | None = None
        self.is_over = False
        self.warning: str | None = None

    def begin(self, chat_request: ChatRequest) -> ChatRequest:
        """Raises BadRequest for a budget that is none, and turns that do not go on from the memory's last."""
        base_model = self.model.target.base_model
        saved = MemoriesOf(self.served.store, self.name.key_id, self.name.user).load(self.name.id)
        kept = self._begun() if saved is None else self._opened(saved)
        turns = captioned(chat_request.conversation.turns, self.field.captions)
        kept = gone_back(kept, turns, chat_request.conversation.begun)
        self.asked = asked_of(kept, turns, chat_request.conversation.begun)
        kept = kept if self.asked.exchange else closed(kept, self.parts)
        self.kept = counted_anew(kept, self.parts, base_model)
        self._note(turns)
        return replace(
            chat_request, conversation=replace(chat_request.conversation, turns=prompt_turns(self.kept, self.asked))
        )

    def _note(self, turns: tuple[Turn, ...]) -> None:
        """What cannot be kept, such as a pin over the budget or a time that goes back, is refused before the model is
        asked."""
        assert self.asked is not None, "the new turns are known by now"
        said = [turn for turn in turns if turn.role != "system"]
        clock = Clock(now(), last_time_of(self.kept))
        self.notes = notes_of(self.field, said, self.asked.known, clock)
        times = [note.time for note in self.notes if note.time is not None]
        self.time = times[-1] if times else None
        if self.field.pin or self.field.time is not None:
            check_notes(self.kept, self.asked, self.parts, self.notes)

    def _begun(self) -> KeptMemory:
        budget, window = self.field.budget_tokens, self.model.info.context_window
        if budget is None:
            raise BadRequest(f"Memory {self.name.id!r} begins with this request; say how large it is: budget_tokens.")
        if budget > window:
            raise BadRequest(
                f"Memory {self.name.id!r} was to have a budget of {budget} tokens, and the model's window has "
                f"{window}. Give it less, and leave room for the new turn and the answer."
            )
        return KeptMemory(state=MemoryState(budget), counted_by=self.model.target.base_model)

    def _opened(self, saved: Saved) -> KeptMemory:
        kept, self.revision = opened(self.name.id, saved), saved.revision
        budget = self.field.budget_tokens
        if budget is not None and budget != kept.state.budget:
            raise BadRequest(
                f"Memory {self.name.id!r} was begun with a budget of {kept.state.budget} tokens, and {budget} were "
                f"asked for. Leave budget_tokens out, or change it by POST /loop/v1/memories/{self.name.id}/resize."
            )
        return kept

    async def keep(self, answer: tuple[Turn, ...], *, cut: bool = False) -> dict[str, Any]:
        """What the answer tells of its memory. A turn that could not be kept is told in `warning`."""
        if self.saving is None:
            self.saving = asyncio.ensure_future(asyncio.to_thread(self._finish, answer, cut=cut))
        try:
            await asyncio.shield(self.saving)  # a client that leaves now does not leave half a turn
        except LoreloopError as error:
            self.warning = f"The answer came, but this turn is not in memory {self.name.id!r}: {error.message}"
        finally:
            if self.saving.done():
                self._release()  # who has been told the end may ask again before the stream is closed
        return memory_summary(self.name.id, self.kept, self.revision) | {"remembered": self.warning is None}

    def _finish(self, answer: tuple[Turn, ...], *, cut: bool) -> None:
        assert self.asked is not None, "a turn begins before it is kept"
        kept = with_answer(self.kept, self.asked, answer, self.parts, cut=cut, notes=self.notes, time=self.time)
        store = MemoriesOf(self.served.store, self.name.key_id, self.name.user, began=self.began)
        self.revision = store.save(self.name.id, to_bytes(kept), after=self.revision).revision
        self.kept = kept

    async def end(self, *, left: bool) -> None:
        """Ends the turn. What was shown to a client that has left is kept; a save that is under way is waited for."""
        try:
            if (
                left
                and self.saving is None
                and self.chat_request is not None
                and self.chat_request.collected
                and self.chat_request.collected.content
            ):
                await self.keep((answer_of(self.chat_request, cut=True),), cut=True)
                if self.warning:
                    LOG.warning("%s", self.warning)
            elif self.saving is not None:
                await asyncio.gather(self.saving, return_exceptions=True)  # whoever waited for it has heard
        finally:
            self._release()

    def _release(self) -> None:
        """Lets the next request on the memory. Only once: a second time that one would be on it."""
        if not self.is_over:
            self.is_over = True
            self.served.remembering.discard(self.name)


@lru_cache(maxsize=8)
def refill_by(tokenizer: TextTokenizer) -> ExtractiveRefill:
    """One for all memories that a tokenizer counts, so that forms which a request needed are there for the next."""
    return ExtractiveRefill(tokenizer.count)


def parts_with(count: Callable[[str], int]) -> Parts:
    """The parts of every memory on the server: surface features and excerpts. No model is asked."""
    return Parts(count, SurfaceImportance(), ExtractiveRefill(count))


def opened(id: str, saved: Saved) -> KeptMemory:
    """The stored memory; ServerError where its form is one that this server cannot read."""
    try:
        return from_bytes(saved.data)
    except BadRequest as error:
        raise ServerError(
            f"Memory {id!r} is kept in a form that this server cannot read: {error.message} To begin anew, delete it."
        ) from error


def memory_summary(id: str, kept: KeptMemory, revision: int) -> dict[str, Any]:
    """What an answer says of its memory: tokens, budget in tokens, turns, and the revision of the stored row."""
    state = kept.state
    return {
        "id": id,
        "tokens": state.tokens,
        "budget_tokens": state.budget,
        "turns": state.n_turns + len(kept.open),
        "revision": revision,
    }

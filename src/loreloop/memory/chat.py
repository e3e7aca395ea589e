"""MemoryChat: a client's conversation with any server of OpenAI's chat format, with a memory in place of the past.

The client is passed in and has the form of the `openai` package's; this file knows neither it nor any server.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from loreloop.memory.memory import Forgotten, Memory, Parts, Settings
from loreloop.memory.messages import (
    INSTRUCTIONS,
    CaptionOf,
    Message,
    StreamedAnswer,
    answer_in,
    text_of_content,
    turn_of,
)
from loreloop.memory.persistence import from_json, to_json
from loreloop.memory.state import MemoryState
from loreloop.memory.turns import Turn
from loreloop.protocol.errors import BadRequest, Conflict
from loreloop.protocol.memories import StateStore

PREFACE = "What was said before, shortened. Each turn begins a line; further lines of it are indented:\n"


class NotRemembered(Conflict):
    """`answer` came, and another writer had saved the memory meanwhile, so the turn and the answer were not kept."""

    def __init__(self, id: str, answer: Message) -> None:
        super().__init__(
            f"The answer came, but another writer saved memory {id!r} meanwhile, so this turn is not in it. Open the "
            "memory again and repeat the turn."
        )
        self.answer = answer


@dataclass(frozen=True)
class OpenTurn:
    """One turn that is under way: its messages, and all that the model is sent. `pin` keeps the user's words; `time` is
    in seconds since 1970."""

    new: Sequence[Message]
    turns: Sequence[Turn]
    past: str
    exchange: Sequence[Message]
    pin: bool = False
    time: float | None = None

    def put_into(self, memory: Memory) -> None:
        """Appends the new turns. Instructions are given anew with each turn, so that changing them takes effect."""
        for turn in self.turns:
            if turn.role != "system":
                dated = msgspec.structs.replace(turn, time=self.time)
                memory.append(dated, pinned=self.pin and turn.role == "user")

    @property
    def sent(self) -> list[Message]:
        """Many templates take one system message only, and only as the first."""
        instructions = [text_of_content(m.get("content"), lambda _: "") for m in self.new if m["role"] in INSTRUCTIONS]
        instructions += [PREFACE + self.past] if self.past else []
        rest = [m for m in self.new if m["role"] not in INSTRUCTIONS]
        head: list[Message] = [{"role": "system", "content": "\n\n".join(instructions)}] if instructions else []
        return [*head, *self.exchange, *rest]


class MemoryChat:
    """`client` is an `openai.OpenAI` with any base URL and key, or what has its `chat.completions.create`.

    A turn's system messages stand before the memory whenever they are given, and are not remembered. Between a tool's
    call and its result the exchange is sent as it is, since the protocol asks for it; afterwards it is past. Whoever
    opens a memory with such an exchange open (in another process, say) sends the whole exchange again.
    """

    def __init__(
        self,
        client: Any,
        model: str,
        id: str,
        store: StateStore,
        parts: Parts,
        *,
        budget: int,
        settings: Settings | None = None,
        caption_of: CaptionOf = lambda _: "",
    ) -> None:
        """Raises BadRequest for a broken memory, or one that was begun with another budget."""
        self.client, self.model, self.id, self.store, self.caption_of = client, model, id, store, caption_of
        saved = store.load(id)
        # A memory that is not stored yet begins empty; it is first saved with its first answer.
        state = MemoryState(budget) if saved is None else from_json(saved.data)
        # A silent resize would drop text for good because of a mistyped number.
        if state.budget != budget:
            raise BadRequest(
                f"Memory {id!r} was begun with a budget of {state.budget} tokens, and {budget} were asked for. Open it "
                "with its own budget, give it another one first (`loreloop memory resize`), or begin another memory."
            )
        self.revision = 0 if saved is None else saved.revision
        self.memory = Memory(state, parts, settings)
        self.exchange: tuple[Message, ...] = ()  # open between a tool's call and its result
        self.past = ""  # the memory as it was when the open exchange began

    def send(self, messages: Sequence[Message], *, pin: bool = False, time: float | None = None, **fields: Any) -> Any:
        """The client's own response to this turn's messages; `fields` go to it as they are. With `pin` the user's
        messages stay in the memory word for word; `time`, in seconds since 1970, is that of the turn and its answer.

        Raises what the client raises, BadRequest, Conflict where another writer has saved this memory, and
        NotRemembered where it did so while the model answered. The memory is unchanged after every error.
        """
        open_turn = self._open_turn(messages, fields, pin=pin, time=time)
        response = self.client.chat.completions.create(model=self.model, messages=open_turn.sent, **fields)
        self._remember(open_turn, answer_in(response))
        return response

    def stream(
        self, messages: Sequence[Message], *, pin: bool = False, time: float | None = None, **fields: Any
    ) -> Generator[Any]:
        """The client's own chunks. One who leaves midway, by close() or Ctrl-C, has heard what came, and that is
        remembered with the turn; a stream that breaks, or is left before anything came, changes nothing."""
        return self._streamed(self._open_turn(messages, fields, pin=pin, time=time), fields)

    def forget(self, *, turn: int | None = None, pattern: str = "") -> Forgotten:
        """As Memory.forget, and saved. An open exchange is given up: what was sent of it may be what is to go."""
        trial = self._trial()
        # The change is made to a copy and kept only once it is stored: a conflict leaves this chat as it was.
        gone = trial.forget(turn=turn, pattern=pattern)
        self._save(trial)
        self.exchange, self.past = (), ""
        return gone

    def _streamed(self, open_turn: OpenTurn, fields: dict[str, Any]) -> Generator[Any]:
        answer = StreamedAnswer()
        chunks = self.client.chat.completions.create(model=self.model, messages=open_turn.sent, stream=True, **fields)
        try:
            for chunk in chunks:
                answer.add(chunk)
                yield chunk
        except (GeneratorExit, KeyboardInterrupt):
            answer.calls.clear()  # perhaps cut in the middle, so nobody can answer them
            if answer.content:
                self._remember(open_turn, answer.message())
            raise
        finally:
            # An abandoned connection would keep the server generating.
            chunks.close()
        self._remember(open_turn, answer.message())

    def _open_turn(
        self, messages: Sequence[Message], fields: dict[str, Any], *, pin: bool, time: float | None
    ) -> OpenTurn:
        if not messages:
            raise BadRequest("A turn has at least one message; none was given.")
        if fields.get("n", 1) != 1 or "messages" in fields or "stream" in fields:
            raise BadRequest(
                "A remembered turn has one answer: leave `n` and `messages` out, and stream by `stream()`."
            )
        turns = [turn_of(m, self.caption_of) for m in messages]
        calls = {call["id"] for m in (*self.exchange, *messages) for call in m.get("tool_calls") or ()}
        # Refused before the model is asked, since the error can then name the call that is missing.
        orphans = [m for m in messages if m["role"] == "tool" and m.get("tool_call_id") not in calls]
        if orphans:
            raise BadRequest(
                f"The tool's result for {orphans[0].get('tool_call_id')!r} answers no call of the open exchange. Send "
                "the call's message before it."
            )
        self._check_revision()
        # The memory holds the first turns of an exchange by now; the past from before it keeps them from being told
        # twice.
        goes_on = bool(self.exchange) and any(m["role"] == "tool" for m in messages)
        past, exchange = (self.past, self.exchange) if goes_on else (self.memory.text, ())
        opened = OpenTurn(new=messages, turns=turns, past=past, exchange=exchange, pin=pin, time=time)
        if pin or time is not None:
            # A pin that does not fit, or a time that goes back, is refused before an answer is paid for.
            opened.put_into(self._trial())
        return opened

    def _check_revision(self) -> None:
        """Before the model is asked: an answer that cannot be kept would be paid for nothing."""
        saved = self.store.load(self.id)
        revision = 0 if saved is None else saved.revision
        if revision != self.revision:
            raise Conflict(
                f"Memory {self.id!r} is used by another chat: revision {revision} is stored, and this chat goes on "
                f"from {self.revision}. Nothing was sent; open the memory again and repeat the turn."
            )

    def _remember(self, open_turn: OpenTurn, answer: Message) -> None:
        trial = self._trial()
        open_turn.put_into(trial)
        trial.append(msgspec.structs.replace(turn_of(answer, self.caption_of), time=open_turn.time))
        try:
            self._save(trial)
        except Conflict as error:
            # The answer was paid for, so the error carries it to the caller.
            raise NotRemembered(self.id, answer) from error
        # Tool calls must be answered with the same messages before them, so those are held until the results are in.
        is_open = bool(answer.get("tool_calls"))
        rest = [m for m in open_turn.new if m["role"] not in INSTRUCTIONS]
        self.exchange = (*open_turn.exchange, *rest, answer) if is_open else ()
        self.past = open_turn.past if is_open else ""

    def _trial(self) -> Memory:
        """A copy to change: the memory itself stays as it is until the copy is saved."""
        trial = Memory(self.memory.state, self.memory.parts, self.memory.settings)
        # The condensed forms are copied too, so that they need not be made again after each turn.
        trial.small = dict(self.memory.small)
        return trial

    def _save(self, trial: Memory) -> None:
        self.revision = self.store.save(self.id, to_json(trial.state), after=self.revision).revision
        self.memory = trial

"""A memory as a server keeps it between requests: from a request's turns to what a model is sent, and to what is kept.

Works on turns as every dialect gives them. Does not know where a memory is kept, nor what a request looks like.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from loreloop.memory import turns as memory_turns
from loreloop.memory.chat import PREFACE
from loreloop.memory.history import EXCHANGES, Exchange, Heard, digest, exchange_of, heard, mark_of, plain
from loreloop.memory.memory import Memory, Parts, behind_first_change
from loreloop.memory.persistence import decoded, from_json
from loreloop.memory.state import MemoryState, passage, text_of
from loreloop.protocol.errors import BadRequest
from loreloop.text.conversation import Turn, turn_of_parts

VERSION = 2


class Note(msgspec.Struct, frozen=True):
    """What is said of a turn beside its text: when it was said, in seconds since 1970, and whether it is pinned."""

    time: float | None = None
    pinned: bool = False


class Last(msgspec.Struct, frozen=True):
    """How to go back behind the last request: the number of the first turn that it added, the time of the last turn
    before that and whether it asked something, and the exchange that was open then."""

    first: int
    time: float | None = None
    open: tuple[Turn, ...] = ()
    notes: tuple[Note, ...] = ()
    asked: bool = False


class KeptMemory(msgspec.Struct, frozen=True, kw_only=True):
    """`open` is the exchange between a tool's call and its result, with a note for each turn, which is sent word for
    word and becomes memory when it is over. `exchanges` are the last of all `n_exchanges` requests. `counted_by` names
    the base model whose tokenizer counted the segments."""

    state: MemoryState
    counted_by: str
    open: tuple[Turn, ...] = ()
    notes: tuple[Note, ...] = ()
    exchanges: tuple[Exchange, ...] = ()
    n_exchanges: int = 0
    last: Last | None = None
    version: int = VERSION


class _Saved(msgspec.Struct, frozen=True, kw_only=True):
    """Version 1 had no number, and `marks`, those of the last question and its answer."""

    state: msgspec.Raw
    counted_by: str
    open: tuple[Turn, ...] = ()
    notes: tuple[Note, ...] = ()
    exchanges: tuple[Exchange, ...] = ()
    n_exchanges: int = 0
    last: Last | None = None
    marks: tuple[str, ...] = ()
    version: int = 1


def to_bytes(kept: KeptMemory) -> bytes:
    """The kept memory as JSON, which `from_bytes` reads."""
    return msgspec.json.encode(kept)


def from_bytes(data: bytes) -> KeptMemory:
    """Raises BadRequest for anything but what this version or an earlier one wrote."""
    saved = decoded(data, _Saved)
    if not 1 <= saved.version <= VERSION:
        raise BadRequest(
            f"The kept memory has version {saved.version}, and this loreloop reads versions 1 to {VERSION}. Use the "
            "version that wrote it."
        )
    kept = KeptMemory(
        state=from_json(bytes(saved.state)),
        counted_by=saved.counted_by,
        open=saved.open,
        notes=saved.notes,
        exchanges=saved.exchanges,
        n_exchanges=saved.n_exchanges,
        last=saved.last,
        version=saved.version,
    )
    if not saved.marks:
        return kept
    # Of an old memory one request is known, and never that there were no others.
    known = Exchange(1, digest([saved.marks[0]]), saved.marks[0], saved.marks[-1])
    return msgspec.structs.replace(kept, exchanges=(known,), n_exchanges=2)


@dataclass(frozen=True)
class Asked:
    """A request's turns: `system` are instructions, which are not remembered, `exchange` what is open and sent again
    word for word, `new` what the request adds, behind `known` turns that the memory holds."""

    system: tuple[Turn, ...]
    exchange: tuple[Turn, ...]
    new: tuple[Turn, ...]
    known: int = 0


def heard_of(kept: KeptMemory, said: Sequence[Turn]) -> Heard:
    """How much of these turns the memory knows."""
    return heard(kept.exchanges, said, is_all=kept.n_exchanges == len(kept.exchanges))


def has_heard(kept: KeptMemory, said: Sequence[Turn], begun: str) -> bool:
    """Whether a client begins the answer with the whole of one that the memory holds."""
    ends = (*said, Turn("assistant", begun))
    # A beginning of our answer is known too, as another form of it; but only the whole of it leaves nothing to say.
    is_whole = any(mark_of(ends[-1]) == one.answer for one in kept.exchanges)
    return bool(begun) and is_whole and heard_of(kept, ends).known > len(said)


def gone_back(kept: KeptMemory, turns: Sequence[Turn], begun: str = "") -> KeptMemory:
    """The memory without its last request and the answer, where these turns ask the same again: the client lacks the
    answer, or wants another. Otherwise the memory itself. What the request's edits took out does not come back.
    `begun` is how the client begins the answer; if that is ours, it does not lack it."""
    said = tuple(turn for turn in turns if turn.role != "system")
    if kept.last is None or not heard_of(kept, said).again or has_heard(kept, said, begun):
        return kept
    last, state = kept.last, kept.state
    left = tuple(segment for segment in state.segments if max(segment.turns) < last.first)
    lost = behind_first_change(state.segments, left)
    costs = msgspec.structs.replace(state.costs, reprefilled=state.costs.reprefilled + lost)
    return msgspec.structs.replace(
        kept,
        state=msgspec.structs.replace(
            state, segments=left, n_turns=last.first, asked=last.asked, last_time=last.time, costs=costs
        ),
        open=last.open,
        notes=last.notes,
        exchanges=kept.exchanges[:-1],
        n_exchanges=kept.n_exchanges - 1,
        last=None,
    )


def asked_of(kept: KeptMemory, turns: Sequence[Turn], begun: str = "") -> Asked:
    """A client may send its new turns alone, or the whole conversation: then what is known of it is left out. `begun`
    is how it begins the answer.

    Raises BadRequest where nothing is new, and where answers are that the memory does not know.
    """
    system = tuple(turn for turn in turns if turn.role == "system")
    said = tuple(turn for turn in turns if turn.role != "system")
    found = heard_of(kept, said)
    # What is asked again, by who cannot go back, must not stand in the memory twice.
    known = len(said) if found.again else found.known
    new = said[known:]
    if has_heard(kept, said, begun) or not new:
        raise BadRequest("The request adds no turn to what its memory holds. Send the new message.")
    is_begun = kept.state.n_turns > 0 or bool(kept.open)
    if is_begun and any(turn.role == "assistant" for turn in new):
        raise BadRequest(
            "The request brings answers of an assistant that its memory does not know, as those of another "
            "conversation, or of long ago. Send the new messages alone, or give this conversation a memory of its own."
        )
    goes_on = bool(kept.open) and new[0].role == "tool"
    as_sent = said[max(0, known - len(kept.open)) : known]
    # What the client sends again has its pictures, but lacks the calls that the server made itself.
    is_whole = list(map(mark_of, as_sent)) == list(map(mark_of, kept.open))
    exchange = (as_sent if is_whole else kept.open) if goes_on else ()
    _check_results((*exchange, *new))
    return Asked(system, exchange, new, known)


def _check_results(turns: Sequence[Turn]) -> None:
    calls = {call.call_id for turn in turns for call in turn.calls}
    for turn in turns:
        if turn.role == "tool" and turn.call_id not in calls:
            raise BadRequest(
                f"The tool's result for {turn.call_id!r} answers no call of the open exchange. Send the call's message "
                "before it."
            )


def prompt_turns(kept: KeptMemory, asked: Asked) -> tuple[Turn, ...]:
    """What the model is sent: instructions and the memory in one system turn, since many templates take one only, and
    only as the first; then what is open, and the new turns."""
    told = [turn.parts or (turn.content,) for turn in asked.system]
    told += [(PREFACE + text_of(kept.state),)] if kept.state.segments else []
    parts = [part for n, each in enumerate(told) for part in (*(("\n\n",) if n else ()), *each)]
    head = (turn_of_parts("system", parts),) if parts else ()
    return (*head, *asked.exchange, *asked.new)


def with_answer(
    kept: KeptMemory,
    asked: Asked,
    answer: Sequence[Turn],
    parts: Parts,
    *,
    cut: bool,
    notes: Sequence[Note] = (),
    time: float | None = None,
) -> KeptMemory:
    """The memory after a turn. `answer` are all turns behind the new ones, said at `time`; of one that was `cut`, what
    was shown. `notes` are of the new turns."""
    turns = (*asked.exchange, *asked.new, *answer)
    every = [*padded(kept.notes, len(asked.exchange)), *padded(notes, len(asked.new)), *([Note(time)] * len(answer))]
    before = len(turns) if not answer[-1].calls else _last_question(turns)
    made = exchange_of(asked.new, turns[-1], cut=cut)
    return msgspec.structs.replace(
        kept,
        state=appended(kept.state, turns[:before], parts, every),
        open=tuple(map(plain, turns[before:])),
        notes=tuple(every[before:]),
        exchanges=(*kept.exchanges, made)[-EXCHANGES:],
        n_exchanges=kept.n_exchanges + 1,
        last=Last(
            first=kept.state.n_turns,
            time=kept.state.last_time,
            open=kept.open,
            notes=kept.notes,
            asked=kept.state.asked,
        ),
    )


def _last_question(turns: Sequence[Turn]) -> int:
    return max((at for at, turn in enumerate(turns) if turn.role == "user"), default=0)


def padded(notes: Sequence[Note], n: int) -> list[Note]:
    """A note for each of `n` turns."""
    return [*notes, *([Note()] * n)][:n]


def appended(state: MemoryState, turns: Sequence[Turn], parts: Parts, notes: Sequence[Note] = ()) -> MemoryState:
    """The state after these turns, which are remembered as texts; within the budget after each of them."""
    memory = Memory(state, parts)
    for turn, note in zip(turns, padded(notes, len(turns)), strict=True):
        memory.append(remembered(turn, note), pinned=note.pinned)
    return memory.state


def last_time_of(kept: KeptMemory) -> float | None:
    """When something was said last, be it in the open exchange; None where no time is known."""
    times = [note.time for note in kept.notes if note.time is not None]
    return max([*times, *([] if kept.state.last_time is None else [kept.state.last_time])], default=None)


def check_notes(kept: KeptMemory, asked: Asked, parts: Parts, notes: Sequence[Note]) -> None:
    """BadRequest, before the model is asked, for what could not be kept with its answer: a pin over the budget, or a
    time that goes back."""
    appended(kept.state, (*asked.exchange, *asked.new), parts, [*padded(kept.notes, len(asked.exchange)), *notes])


def closed(kept: KeptMemory, parts: Parts) -> KeptMemory:
    """With the open exchange given up: what was said in it is past, and stands in the memory."""
    state = appended(kept.state, kept.open, parts, kept.notes)
    return msgspec.structs.replace(kept, state=state, open=(), notes=())


def changed_by_hand(kept: KeptMemory, state: MemoryState) -> KeptMemory:
    """With a state from which something was taken out on purpose: then nothing is kept that could bring it back."""
    last = None if kept.last is None or kept.last.open else kept.last
    return msgspec.structs.replace(kept, state=state, last=last)


def counted_anew(kept: KeptMemory, parts: Parts, counted_by: str) -> KeptMemory:
    """The same segments, by this count inside the same budget: for a model with another tokenizer, and for a memory of
    version 1, some of which were counted before the further lines of a turn were indented. Otherwise the memory
    itself."""
    if kept.counted_by == counted_by and kept.version == VERSION:
        return kept
    segments = tuple(
        msgspec.structs.replace(segment, tokens=parts.count(passage(segment.head, segment.text)))
        for segment in kept.state.segments
    )
    memory = Memory(msgspec.structs.replace(kept.state, segments=segments), parts)
    memory.resize(kept.state.budget)
    return msgspec.structs.replace(kept, state=memory.state, counted_by=counted_by, version=VERSION)


def remembered(turn: Turn, note: Note) -> memory_turns.Turn:
    """Calls become words, since later turns speak of what they did; of an image its caption is kept, or a marker."""
    calls = [f"calls {call.name} {call.arguments}" for call in turn.calls]
    text = "\n".join(piece for piece in (plain(turn).content, *calls) if piece)
    return memory_turns.Turn(turn.role, text, speaker=turn.name or "", time=note.time)

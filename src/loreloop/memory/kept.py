"""A memory as a server keeps it between requests, and a request's turns told apart from those that it holds already.

Works on turns as every dialect gives them. Does not know where a memory is kept, nor what a request looks like.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec

from loreloop.memory import turns as memory_turns
from loreloop.memory.chat import PREFACE
from loreloop.memory.memory import Memory, Parts
from loreloop.memory.persistence import decoded, from_json
from loreloop.memory.state import MemoryState, passage, text_of
from loreloop.protocol.errors import BadRequest
from loreloop.text.conversation import Picture, Turn, turn_of_parts

CUT = "cut"  # the mark of an answer that was left midway: its client may have got less of it than we sent
IMAGE = "[image]"


class KeptMemory(msgspec.Struct, frozen=True):
    """`open` is the exchange between a tool's call and its result, which is sent word for word and becomes memory when
    it is over. `marks` are those of the last question and its answer. `counted_by` names the base model whose tokenizer
    counted the segments."""

    state: MemoryState
    counted_by: str
    open: tuple[Turn, ...] = ()
    marks: tuple[str, ...] = ()


class _Saved(msgspec.Struct, frozen=True):
    state: msgspec.Raw
    counted_by: str
    open: tuple[Turn, ...] = ()
    marks: tuple[str, ...] = ()


def to_bytes(kept: KeptMemory) -> bytes:
    """The kept memory as JSON, which `from_bytes` reads."""
    return msgspec.json.encode(kept)


def from_bytes(data: bytes) -> KeptMemory:
    """Raises BadRequest for anything but what this version wrote."""
    saved = decoded(data, _Saved)
    return KeptMemory(from_json(bytes(saved.state)), saved.counted_by, open=saved.open, marks=saved.marks)


@dataclass(frozen=True)
class Asked:
    """A request's turns: `system` are instructions, which are not remembered, `exchange` what is open and sent again
    word for word, `new` what the request adds."""

    system: tuple[Turn, ...]
    exchange: tuple[Turn, ...]
    new: tuple[Turn, ...]


def asked_of(kept: KeptMemory, turns: Sequence[Turn], begun: str = "") -> Asked:
    """A client may send its new turns alone, or the whole conversation: then those behind the last answer are new.
    `begun` is how it begins the answer.

    Raises BadRequest where neither can be: the conversation has answers, and the last one remembered is not there.
    """
    system = tuple(turn for turn in turns if turn.role == "system")
    said = tuple(turn for turn in turns if turn.role != "system")
    known = _known(kept.marks, said)
    new = said[known:]
    repeated = begun and _known(kept.marks, (*said, Turn("assistant", begun))) > len(said)
    if repeated or not new:
        raise BadRequest("The request adds no turn to what its memory holds. Send the new message.")
    is_begun = kept.state.n_turns > 0 or bool(kept.open)
    if is_begun and any(turn.role == "assistant" for turn in new):
        raise BadRequest(
            "The request brings answers of an assistant, and the last one that its memory holds is not among them. "
            "Send the new messages alone, or the whole conversation; another one needs a memory of its own."
        )
    goes_on = bool(kept.open) and new[0].role == "tool"
    as_sent = said[max(0, known - len(kept.open)) : known]
    # What the client sends again has its pictures, but lacks the calls that the server made itself.
    is_whole = list(map(mark_of, as_sent)) == list(map(mark_of, kept.open))
    exchange = (as_sent if is_whole else kept.open) if goes_on else ()
    _check_results((*exchange, *new))
    return Asked(system, exchange, new)


def _known(marks: Sequence[str], said: Sequence[Turn]) -> int:
    """How many of the turns are remembered: up to the last answer, told by its own mark and its question's."""
    for end in range(len(said), 0, -1):
        n_told = min(end, len(marks))
        if n_told and said[end - 1].role == "assistant":
            pairs = zip(marks[-n_told:], said[end - n_told : end], strict=True)
            if all(mark in (CUT, mark_of(turn)) for mark, turn in pairs):
                return end
    return 0


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


def with_answer(kept: KeptMemory, asked: Asked, answer: Sequence[Turn], parts: Parts, *, cut: bool) -> KeptMemory:
    """The memory after a turn. `answer` are all turns behind the new ones; of one that was `cut`, what was shown."""
    turns = (*asked.exchange, *asked.new, *answer)
    before = len(turns) if not answer[-1].calls else _last_question(turns)
    # The calls that the server made itself stand between the two, and no client sends them again.
    question = asked.new[-1]
    return msgspec.structs.replace(
        kept,
        state=appended(kept.state, turns[:before], parts),
        open=tuple(map(plain, turns[before:])),
        marks=(mark_of(question), CUT if cut else mark_of(turns[-1])),
    )


def _last_question(turns: Sequence[Turn]) -> int:
    return max((at for at, turn in enumerate(turns) if turn.role == "user"), default=0)


def appended(state: MemoryState, turns: Sequence[Turn], parts: Parts) -> MemoryState:
    """The state after these turns, which are remembered as texts; within the budget after each of them."""
    memory = Memory(state, parts)
    for turn in turns:
        memory.append(remembered(turn))
    return memory.state


def closed(kept: KeptMemory, parts: Parts) -> KeptMemory:
    """With the open exchange given up: what was said in it is past, and stands in the memory."""
    return msgspec.structs.replace(kept, state=appended(kept.state, kept.open, parts), open=())


def counted_anew(kept: KeptMemory, parts: Parts, counted_by: str) -> KeptMemory:
    """For a model with another tokenizer: the same segments, by its count inside the same budget."""
    segments = tuple(
        msgspec.structs.replace(segment, tokens=parts.count(passage(segment.head, segment.text)))
        for segment in kept.state.segments
    )
    memory = Memory(msgspec.structs.replace(kept.state, segments=segments), parts)
    memory.resize(kept.state.budget)
    return msgspec.structs.replace(kept, state=memory.state, counted_by=counted_by)


def remembered(turn: Turn) -> memory_turns.Turn:
    """Calls become words, since later turns speak of what they did; what an image showed is not kept."""
    calls = [f"calls {call.name} {call.arguments}" for call in turn.calls]
    text = "\n".join(piece for piece in (plain(turn).content, *calls) if piece)
    return memory_turns.Turn(turn.role, text, speaker=turn.name or "")


def plain(turn: Turn) -> Turn:
    """The turn without its thoughts, and with a marker in the place of an image."""
    pieces = [IMAGE if isinstance(part, Picture) else part for part in turn.parts]
    content = "\n".join(pieces) if pieces else turn.content
    return replace(turn, content=content, parts=(), thinking=None)


def mark_of(turn: Turn) -> str:
    """What tells a turn from others when its client sends it again. White space around it does not count, nor how a
    client writes down a call's arguments."""
    calls = [(call.call_id, call.name) for call in turn.calls]
    told = [turn.role, plain(turn).content.strip(), calls, turn.call_id]
    return hashlib.sha256(msgspec.json.encode(told)).hexdigest()[:32]

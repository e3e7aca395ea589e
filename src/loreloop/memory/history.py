"""A request's turns told apart from those that a memory holds already, by marks of what was said.

Does not know what a memory keeps of the turns, nor what a request looks like.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace

import msgspec

from loreloop.text.conversation import Picture, Turn

CUT = "cut"  # the mark of an answer that was left midway: its client may have got less of it than we sent
IMAGE = "[image]"
CAPTIONED = re.compile(r"\[image: [^\]\n]*\]")
EXCHANGES = 16  # the last requests of which marks are kept; a client that is further behind is told so


class Exchange(msgspec.Struct, frozen=True):
    """A request that was remembered: how many turns it added, a digest of these, and the marks of the last of them and
    of the answer. Calls that the server made itself are left out, since no client sends them again."""

    n_asked: int
    asked: str
    question: str
    answer: str


class Heard(msgspec.Struct, frozen=True):
    """`known` turns of a request stand in the memory; `n_requests` were found by what they asked alone, without their
    answers. `again`: the last of these is what this one asks."""

    known: int
    again: bool = False
    n_requests: int = 0


def exchange_of(asked: Sequence[Turn], answer: Turn, *, cut: bool) -> Exchange:
    """What is kept of a request to know its turns again; `asked` are its new turns."""
    marks = list(map(mark_of, asked))
    return Exchange(len(marks), digest(marks), marks[-1], CUT if cut else mark_of(answer))


def heard(exchanges: Sequence[Exchange], said: Sequence[Turn], *, is_all: bool) -> Heard:
    """How much of `said`, which has no instructions, is known by the last requests; `is_all`: there were no others.

    The newest remembered answer in it is looked for. What follows it is held against the requests that came after that:
    a client may lack their answers, or have them in another form.
    """
    at, known = _newest_answer(exchanges, said)
    if at >= 0:
        return _followed(exchanges[at + 1 :], said, known)
    from_start = _followed(exchanges, said, 0) if is_all else Heard(0)
    if any(turn.role == "assistant" for turn in said) or (is_all and len(exchanges) == 1):
        return from_start if from_start.known or from_start.again else _followed(exchanges[-1:], said, 0)
    # New messages alone may well say again what was said before. They are the whole conversation only if all questions
    # are among them; a tool's result names the call that it answers, and so tells by itself what it is.
    is_whole = from_start.n_requests == len(exchanges)
    is_result = bool(said) and said[0].role == "tool"
    return from_start if is_whole else _followed(exchanges[-1:], said, 0) if is_result else Heard(0)


def _followed(exchanges: Sequence[Exchange], said: Sequence[Turn], known: int) -> Heard:
    """What is known behind the first `known` turns, if these requests were the next ones. A client may lack some
    altogether, as one that takes a question back when no answer comes."""
    n_requests = 0
    for exchange in exchanges:
        end = known + exchange.n_asked
        if digest(list(map(mark_of, said[known:end]))) != exchange.asked:
            continue
        n_requests += 1
        if end == len(said):
            is_last = exchange is exchanges[-1]
            return Heard(known if is_last else end, again=is_last, n_requests=n_requests)
        # An answer at this place is the client's own form of ours, as when it has got only a part of it.
        known = end + (said[end].role == "assistant")
    return Heard(known, n_requests=n_requests)


def _newest_answer(exchanges: Sequence[Exchange], said: Sequence[Turn]) -> tuple[int, int]:
    """The request whose answer stands last in `said`, behind its question, and the turns up to there; else -1, 0. What
    was said later tells more than what was remembered later: the same may have been asked before."""
    marks = list(map(mark_of, said))
    for end in range(len(said), 0, -1):
        if said[end - 1].role != "assistant":
            continue
        alike = [at for at, wanted in enumerate(exchanges) if _ends_with(marks[:end], wanted)]
        if alike:
            # Where the same was asked and answered several times, the requests around it tell which time is meant.
            return max(alike, key=lambda at: (_around(exchanges, at, said[:end], said), at)), end
    return -1, 0


def _ends_with(marks: Sequence[str], wanted: Exchange) -> bool:
    """Whether turns that end with an answer end with this request's."""
    if wanted.answer not in (CUT, marks[-1]):
        return False
    # An answer alone, at the beginning of what was sent, is told by itself: a client may send its newest turns.
    return marks[-2] == wanted.question if len(marks) > 1 else wanted.answer != CUT


def _around(exchanges: Sequence[Exchange], at: int, before: Sequence[Turn], said: Sequence[Turn]) -> int:
    """How many other requests are found if `before`, the beginning of `said`, ends with the one at `at`: those just
    before it, without a gap, and those that followed."""
    n_followed = _followed(exchanges[at + 1 :], said, len(before)).n_requests
    end, n_before = len(before) - 1 - exchanges[at].n_asked, 0
    for exchange in reversed(exchanges[:at]):
        start = end - 1 - exchange.n_asked
        # What comes before the answer is the whole request, so its digest tells more than its last question does.
        is_there = start >= 0 and exchange.answer in (CUT, mark_of(said[end - 1]))
        if not is_there or digest(list(map(mark_of, said[start : end - 1]))) != exchange.asked:
            break
        end, n_before = start, n_before + 1
    return n_before + n_followed


def plain(turn: Turn) -> Turn:
    """The turn without its thoughts, and with its caption or a marker in the place of an image."""
    pieces = [caption_in(part) if isinstance(part, Picture) else part for part in turn.parts]
    content = "\n".join(pieces) if pieces else turn.content
    return replace(turn, content=content, parts=(), thinking=None)


def caption_in(picture: Picture) -> str:
    """What stands for an image. A bracket or a line break in a caption would end it early."""
    caption = " ".join(picture.caption.replace("]", ")").split())
    return f"[image: {caption}]" if caption else IMAGE


def mark_of(turn: Turn) -> str:
    """What tells a turn from others when its client sends it again. White space around it does not count, nor how a
    client writes down a call's arguments, nor whether it tells an image's caption again."""
    calls = [(call.call_id, call.name) for call in turn.calls]
    content = CAPTIONED.sub(IMAGE, plain(turn).content).strip()
    return digest([turn.role, content, calls, turn.call_id])


def digest(told: object) -> str:
    """128 bits of a hash, as hexadecimal digits."""
    return hashlib.sha256(msgspec.json.encode(told)).hexdigest()[:32]

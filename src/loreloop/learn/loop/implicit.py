"""What people's behaviour says of answers: who asks again in other words, goes away from an open end, or uses the text.

Pure, and a guess: its statements have the source `implicit`, which every other source may override. They are optional,
and weigh what the loop's settings give them.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal

import msgspec

from loreloop.learn.loop.reward.events import text_of
from loreloop.protocol.episodes import Person, Turn
from loreloop.protocol.feedback import ACCEPTED, Feedback

Kind = Literal["rephrase", "abandon", "copy"]
KINDS: tuple[Kind, ...] = ("rephrase", "abandon", "copy")
LONGEST_COMPARED = 20_000  # characters of a text
NUMBER, QUOTED = re.compile(r"\d+"), re.compile(r"^\s*>.*$", re.MULTILINE)


class Signs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """From when on behaviour is taken for a sign. `alike` compares two questions, 0 for nothing in common and 1 for the
    same; `copied_characters` have to come back in one piece."""

    alike: float = 0.6
    rephrased_within_seconds: float = 600.0
    idle_seconds: float = 3600.0
    copied_characters: int = 60


class Sign(msgspec.Struct, frozen=True):
    """One thing that was noticed of one turn: whether the answer was taken, and what speaks for that."""

    kind: Kind
    turn: Turn
    accepted: bool
    why: str


def signals(
    turns: Iterable[Turn], now: float, signs: Signs | None = None, kinds: Sequence[Kind] = KINDS
) -> list[Feedback]:
    """What the turns say of one another: at most one statement of a turn, by the first of `kinds` that applies.

    `now` is in seconds since the epoch. Its ids depend on turn and kind alone, so that to give them again changes
    nothing. Side turns, turns without consent and those whose content is gone say nothing.
    """
    signs = signs or Signs()
    noticed: dict[str, Sign] = {}
    finders: Mapping[Kind, Callable[[Sequence[Turn]], Iterator[Sign]]] = {
        "rephrase": lambda chat: rephrases(chat, signs),
        "abandon": lambda chat: abandons(chat, signs, now),
        "copy": lambda chat: copies(chat, signs),
    }
    chats = _by_person(turns)
    for kind in kinds:
        for sign in (sign for chat in chats for sign in finders[kind](chat)):
            noticed.setdefault(sign.turn.id, sign)
    return [_statement(sign, now) for sign in noticed.values()]


def rephrases(chat: Sequence[Turn], signs: Signs) -> Iterator[Sign]:
    """Turns of one person whose question the same person soon asked again: the answer did not do.

    Questions with other numbers are other questions, however much alike they are written.
    """
    for index, turn in enumerate(chat):
        question = _question(turn)
        for later in chat[index + 1 :]:
            if later.created - turn.created > signs.rephrased_within_seconds:
                break
            likeness = alike(question, _question(later))
            if likeness >= signs.alike and not _same_request(turn, later):
                yield Sign("rephrase", turn, False, f"asked again in like words ({likeness:.2f})")
                break


def abandons(chat: Sequence[Turn], signs: Signs, now: float) -> Iterator[Sign]:
    """Last turns of episodes that ended open, on a question, a call or cut off, and that nobody came back to."""
    last = {turn.episode_id: turn for turn in chat}  # the last one of each stays
    for turn in last.values():
        if now - turn.created < signs.idle_seconds:
            continue
        text = text_of(turn.answer).rstrip()
        if turn.finish_reason == "length":
            yield Sign("abandon", turn, False, "cut off, and nobody asked for the rest")
        elif turn.answer.get("tool_calls"):
            yield Sign("abandon", turn, False, "its calls were never answered")
        elif text.endswith(("?", "\uff1f")):
            yield Sign("abandon", turn, False, "asked back, and nobody replied")


def copies(chat: Sequence[Turn], signs: Signs) -> Iterator[Sign]:
    """Turns of which a long piece comes back in what the same person writes later, outside of a quotation."""
    for index, turn in enumerate(chat):
        answer = _plain(text_of(turn.answer))
        pieces = {answer[start : start + signs.copied_characters] for start in _starts(answer, signs)}
        for later in chat[index + 1 :] if pieces else ():
            # What is quoted is spoken about, perhaps because it is wrong.
            text = _plain(QUOTED.sub("", _question(later)))
            if any(text[start : start + signs.copied_characters] in pieces for start in _starts(text, signs)):
                yield Sign("copy", turn, True, f"{signs.copied_characters} characters of it came back in a message")
                break


def alike(one: str, other: str) -> float:
    """How much two texts have in common: twice the shared triples of letters, by all of both (Dice's coefficient).

    0 where their numbers differ.
    """
    if sorted(NUMBER.findall(one)) != sorted(NUMBER.findall(other)):
        return 0.0
    first, second = _triples(one), _triples(other)
    total = first.total() + second.total()
    return 2 * (first & second).total() / total if total else 0.0


def _by_person(turns: Iterable[Turn]) -> list[list[Turn]]:
    """The turns of each person and deployment in the order of time, without those that may not speak."""
    chats: defaultdict[tuple[str, Person], list[Turn]] = defaultdict(list)
    for turn in {turn.id: turn for turn in turns}.values():  # a turn that was marked comes in the feed once more
        if turn.consent and not turn.side and turn.answer and turn.fate not in ("expired", "dropped"):
            chats[turn.deployment, turn.person].append(turn)
    return [sorted(chat, key=lambda turn: (turn.created, turn.number)) for chat in chats.values()]


def _statement(sign: Sign, now: float) -> Feedback:
    return Feedback(
        number=0,
        id=f"implicit-{sign.kind}-{sign.turn.id}",
        metric=ACCEPTED,
        level="inference",
        target_id=sign.turn.id,
        deployment=sign.turn.deployment,
        value=sign.accepted,
        created=now,
        source="implicit",
        who=sign.turn.person.user,
        why=sign.why,
        tags={"sign": sign.kind},
    )


def _question(turn: Turn) -> str:
    """What the person said last before the answer."""
    said = [message for message in turn.messages if message.get("role") == "user"]
    return text_of(said[-1])[:LONGEST_COMPARED] if said else ""


def _same_request(one: Turn, other: Turn) -> bool:
    """Several answers to one request share an id up to a colon; rounds of tools after one question share the question
    and go on from it."""
    if one.id.split(":")[0] == other.id.split(":")[0]:
        return True
    goes_on = len(other.messages) > len(one.messages) and other.messages[: len(one.messages)] == one.messages
    return goes_on and not any(message.get("role") == "user" for message in other.messages[len(one.messages) :])


def _triples(text: str) -> Counter[str]:
    padded = f"  {_plain(text).casefold()} " if text.strip() else ""
    return Counter(padded[start : start + 3] for start in range(len(padded) - 2))


def _plain(text: str) -> str:
    return " ".join(text[:LONGEST_COMPARED].split())


def _starts(text: str, signs: Signs) -> range:
    return range(len(text) - signs.copied_characters + 1)

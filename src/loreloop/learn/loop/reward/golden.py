"""The golden set: feedback that nothing is ever trained on, by which rewards and revisions are judged.

The rule by which it grows. A prompt is held out by a hash of its messages, so that it is on its side before anybody has
said anything of it, and stays there; a person who labels for the golden set may reserve further prompts, unless they
were trained on before. Of what is said of held-out prompts, the word of people and of code enters, not that of judges
and not what was read from behaviour; of one person, so much at most for each part. When a part has enough statements of
enough persons it is closed and dated, and the next one begins. The newest part says how things are now; older ones show
drift. Knows no particular reward model.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from loreloop.learn.loop.reward.calibration import auc
from loreloop.learn.loop.reward.events import NOBODY, LabelledEvent, RewardModel, prompt_key
from loreloop.protocol.episodes import Message
from loreloop.protocol.errors import Conflict

TRUSTED = ("human", "code")
ALIKE = 0.2  # the correlation between two statements of one person, as it is taken to be


class GoldenRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the set grows: the share of prompts that is held out (by the hash of `salt` and prompt), how many statements
    of one person a part takes, and how many statements of how many persons close it."""

    share: Annotated[float, Meta(ge=0, le=0.5)] = 0.1
    salt: str = ""
    per_person: Annotated[int, Meta(ge=1)] = 5
    fewest_events: Annotated[int, Meta(ge=1)] = 30
    fewest_persons: Annotated[int, Meta(ge=1)] = 8


class GoldenPart(msgspec.Struct, frozen=True, kw_only=True):
    """A closed part: its number, the times of its first and last statement, and the statements."""

    number: int
    begun: float  # seconds since the epoch
    closed: float
    events: tuple[LabelledEvent, ...]


class _Kept(msgspec.Struct, kw_only=True):
    version: int = 0
    parts: list[GoldenPart] = []
    growing: list[LabelledEvent] = []
    reserved: set[str] = set()


class GoldenSet:
    """All parts, and the one that grows. `version` counts whatever has changed the closed ones."""

    def __init__(self, rule: GoldenRule | None = None) -> None:
        self.rule = rule or GoldenRule()
        self.kept = _Kept()

    @property
    def version(self) -> int:
        """Rises with every part that closes, and with every statement that leaves one."""
        return self.kept.version

    @property
    def parts(self) -> tuple[GoldenPart, ...]:
        """The closed parts, the oldest first."""
        return tuple(self.kept.parts)

    @property
    def newest(self) -> GoldenPart | None:
        """The part that was closed last."""
        return self.kept.parts[-1] if self.kept.parts else None

    def latest(self, n: int) -> tuple[LabelledEvent, ...]:
        """The newest statements, in closed parts or in the one that grows."""
        events = [*(one for part in self.kept.parts for one in part.events), *self.kept.growing]
        return tuple(sorted(events, key=lambda one: one.number)[-n:])

    def holds(self, messages: Sequence[Message]) -> bool:
        """Whether a prompt is held out; nothing may ever be trained on it."""
        key = prompt_key(messages)
        place = int.from_bytes(hashlib.sha256(f"{self.rule.salt} {key}".encode()).digest()[:8]) / 2**64
        return place < self.rule.share or key in self.kept.reserved

    def reserve(self, messages: Sequence[Message], trained: Collection[str]) -> None:
        """Holds out a prompt from now on. Conflict where it is among the `trained` ones, by their `prompt_key`."""
        if (key := prompt_key(messages)) in trained:
            raise Conflict(
                "This prompt was trained on already, so it cannot judge what was learned; label another turn."
            )
        self.kept.reserved.add(key)

    def grow(self, events: Sequence[LabelledEvent]) -> GoldenPart | None:
        """Takes in what was said of held-out prompts; gives the part that this has closed, if any. What is in already
        or is not held out is left out; of a person who has said more than their share, the newest stays."""
        known = {one.id for one in self.kept.growing} | {one.id for part in self.kept.parts for one in part.events}
        closed = None
        for event in sorted(events, key=lambda one: one.number):
            if event.id in known or event.source not in TRUSTED or not self.holds(event.item.messages):
                continue
            if event.person != NOBODY and not self._make_room(event):
                continue
            self.kept.growing.append(event)
            persons = {one.person for one in self.kept.growing} - {NOBODY}
            if len(self.kept.growing) >= self.rule.fewest_events and len(persons) >= self.rule.fewest_persons:
                closed = self._close()
        return closed

    def _make_room(self, event: LabelledEvent) -> bool:
        """Takes out a person's oldest statement where they have said their share. Where few people speak a part may
        grow for months, and must tell what they say now; False where the event is older than all that."""
        own = [one for one in self.kept.growing if one.person == event.person]
        if len(own) < self.rule.per_person:
            return True
        oldest = min(own, key=lambda one: one.number)
        if oldest.number > event.number:
            return False
        self.kept.growing.remove(oldest)
        return True

    def without(self, persons: Collection[str] = (), ids: Collection[str] = ()) -> None:
        """Takes out what deleted persons have said, and statements that were taken back, of closed parts too."""

        def stays(one: LabelledEvent) -> bool:
            return not one.is_of(persons) and one.id not in ids

        self.kept.growing = [one for one in self.kept.growing if stays(one)]
        for place, part in enumerate(self.kept.parts):
            left = tuple(one for one in part.events if stays(one))
            if len(left) < len(part.events):
                self.kept.parts[place] = msgspec.structs.replace(part, events=left)
                self.kept.version += 1

    def ids(self) -> frozenset[str]:
        """The statements that are in it, those of closed parts too."""
        return frozenset(
            one.id for events in (self.kept.growing, *(p.events for p in self.kept.parts)) for one in events
        )

    def save(self, file: Path) -> None:
        """Writes the set in one step: the file is the old one or the new one, whatever dies meanwhile."""
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_name(f".{file.name}.new")
        with open(new, "wb") as opened:
            opened.write(msgspec.json.encode(self.kept))
            opened.flush()
            os.fsync(opened.fileno())
        os.replace(new, file)

    def load(self, file: Path) -> None:
        """Takes back what was saved; a file that is not there leaves the set as it is."""
        if file.exists():
            self.kept = msgspec.json.decode(file.read_bytes(), type=_Kept)

    def _close(self) -> GoldenPart:
        times = [one.created for one in self.kept.growing]
        part = GoldenPart(
            number=len(self.kept.parts) + 1, begun=min(times), closed=max(times), events=tuple(self.kept.growing)
        )
        self.kept.parts.append(part)
        self.kept.growing = []
        self.kept.version += 1
        return part


class Agreement(msgspec.Struct, frozen=True):
    """How a reward agrees with what people have said: the share of preferences that it ranks as they were said (with
    its standard error), and the chance that a good mark has the higher score than a bad one. None where there are none.
    `against_coin` is how many standard errors both together lie above a coin, which ranks half of them right: those
    that a coin would have, held wider where few persons have said much. 0 where there is nothing to rank."""

    pairs: float | None
    error: float | None
    marks: float | None
    n: int
    against_coin: float = 0.0


def agreement(reward: RewardModel, events: Sequence[LabelledEvent]) -> Agreement:
    """How a reward agrees with golden statements."""
    pairs = [one for one in events if one.worse is not None]
    marks = [one for one in events if one.worse is None]
    share = error = ranked = None
    if pairs:
        better = np.array(reward.score([one.item for one in pairs]))
        worse = np.array(reward.score([one.worse for one in pairs if one.worse is not None]))
        right = (np.sign(better - worse) + 1) / 2
        share, error = float(right.mean()), float(right.std() / np.sqrt(len(right)))
    good = np.array([one.value >= 0.5 for one in marks], bool)
    if good.any() and not good.all():
        ranked = auc(np.array(reward.score([one.item for one in marks])), good)
    # A coin's share of n pairs has the variance 1/(4·n).
    found = [(share, 4.0 * len(pairs)), (ranked, _information(good))]
    known = [(each, information) for each, information in found if each is not None]
    total = sum(information for _, information in known)
    mean = sum(each * information for each, information in known) / total if total else 0.5
    z = (mean - 0.5) * math.sqrt(total / _crowding(events))
    return Agreement(share, error, ranked, len(events), z)


def _information(good: NDArray[np.bool_]) -> float:
    """1 over the variance of the ranking of marks by a coin (Mann and Whitney 1947)."""
    n_good, n_bad = int(good.sum()), int((~good).sum())
    return 12.0 * n_good * n_bad / (n_good + n_bad + 1)


def _crowding(events: Sequence[LabelledEvent]) -> float:
    """By how much the variance is larger where one person has said several things, which are alike (Kish's effect of
    the design)."""
    counts = np.array([*Counter(one.person or one.id for one in events).values()], np.float64)
    return float(1 + ALIKE * ((counts**2).sum() / counts.sum() - 1)) if len(counts) else 1.0

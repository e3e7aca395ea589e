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
import os
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta

from loreloop.learn.loop.reward.calibration import auc
from loreloop.learn.loop.reward.events import NOBODY, LabelledEvent, RewardModel, prompt_key
from loreloop.protocol.episodes import Message
from loreloop.protocol.errors import Conflict

TRUSTED = ("human", "code")


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
        """Takes in what was said of held-out prompts; gives the part that this has closed, if any. What is in already,
        is not held out, or is over a person's share is left out."""
        known = {one.id for one in self.kept.growing} | {one.id for part in self.kept.parts for one in part.events}
        counts = Counter(one.person for one in self.kept.growing if one.person != NOBODY)
        closed = None
        for event in sorted(events, key=lambda one: one.number):
            if event.id in known or event.source not in TRUSTED or not self.holds(event.item.messages):
                continue
            if event.person != NOBODY and counts[event.person] >= self.rule.per_person:
                continue
            self.kept.growing.append(event)
            counts[event.person] += event.person != NOBODY
            if len(self.kept.growing) >= self.rule.fewest_events and len(counts) >= self.rule.fewest_persons:
                closed, counts = self._close(), Counter()
        return closed

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
    """How a reward agrees with a part: the share of preferences that it ranks as they were said (with its standard
    error), and the chance that a good mark has the higher score than a bad one. None where there are none."""

    pairs: float | None
    error: float | None
    marks: float | None
    n: int


def agreement(reward: RewardModel, part: GoldenPart) -> Agreement:
    """How a reward agrees with a golden part."""
    pairs = [one for one in part.events if one.worse is not None]
    marks = [one for one in part.events if one.worse is None]
    share = error = ranked = None
    if pairs:
        better = np.array(reward.score([one.item for one in pairs]))
        worse = np.array(reward.score([one.worse for one in pairs if one.worse is not None]))
        right = (np.sign(better - worse) + 1) / 2
        share, error = float(right.mean()), float(right.std() / np.sqrt(len(right)))
    good = np.array([one.value >= 0.5 for one in marks], bool)
    if good.any() and not good.all():
        ranked = auc(np.array(reward.score([one.item for one in marks])), good)
    return Agreement(share, error, ranked, len(part.events))

"""The streaming reward of one loop: hears of turns and statements, learns what is new, and keeps what must not be lost.

    FOLDER/golden.json        the golden set
    FOLDER/trained.json       which prompts and statements were learned from
    FOLDER/proxy/, second/    versions of the reward that is optimised, and of the one that is not

Everything is written before `hear` returns. After a death the same statements are heard again; those that a saved
version has learned from are left out. Knows no server; turns and statements are given to it.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import msgspec

from loreloop.learn.loop.guard_looks import is_for_second, second_opinion
from loreloop.learn.loop.reward.events import (
    NOBODY,
    HeldOut,
    LabelledEvent,
    RewardModel,
    RewardVersion,
    nothing_held_out,
    owner_of,
    prompt_key,
)
from loreloop.learn.loop.reward.golden import Agreement, GoldenRule, GoldenSet, agreement
from loreloop.learn.loop.reward.labels import KeptOut, LabelRules, Labels, labels_of
from loreloop.protocol.episodes import Person, Turn
from loreloop.protocol.feedback import Feedback, Metric
from loreloop.protocol.feedback_rules import is_about, is_golden

SURE = 2.5  # standard errors below a coin


class Forgetting(RewardModel, Protocol):
    """A reward that can unlearn; both of ours can."""

    def known(self) -> set[str]:
        """The ids of the newest statements that it has learned from."""
        ...

    def forget(self, persons: Collection[str] = (), ids: Collection[str] = ()) -> RewardVersion:
        """Learns anew without some persons, or without statements that it has learned from."""
        ...

    def drop_older(self, folder: Path) -> None:
        """Leaves nothing of versions before the newest but their records."""
        ...


class _Trained(msgspec.Struct, frozen=True):
    prompt: str  # its key
    persons: tuple[str, ...]  # whose voice it is, and whose turns


class _Heard(msgspec.Struct, kw_only=True):
    trained: dict[str, _Trained] = {}  # statements that were trained on, by their ids
    learned: dict[str, set[str]] = {}  # ids of statements, by the reward that has learned from them
    deleted: set[str] = set()  # persons that were forgotten already, by hashes of their names

    def prompts(self) -> set[str]:
        """The keys of the prompts that were trained on."""
        return {one.prompt for one in self.trained.values()}


@dataclass(frozen=True)
class Rules:
    """How the stream takes in what it hears. `held_out` tells prompts that are never trained on, beside those of the
    golden set that the stream grows by itself; `trained` gives the keys of prompts that policies were trained on, which
    no golden set may hold any more."""

    labels: LabelRules = field(default_factory=LabelRules)
    golden: GoldenRule = field(default_factory=GoldenRule)
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    second_share: float = 0.25
    held_out: HeldOut = nothing_held_out
    trained: Callable[[], frozenset[str]] = frozenset


@dataclass(frozen=True)
class Heard:
    """What became of what was heard: the version now, how it agrees with the newest golden statements (None: there are
    none yet), and a sentence where that is an alarm, or ""."""

    version: RewardVersion
    labels: Labels
    golden: Agreement | None
    alarm: str = ""


class RewardStream:
    """`proxy` is the reward that is optimised."""

    def __init__(self, folder: Path, proxy: Forgetting, rules: Rules | None = None) -> None:
        self.folder, self.proxy, self.rules = folder, proxy, rules or Rules()
        self.second = second_opinion()
        self.golden = GoldenSet(self.rules.golden)
        self.golden.load(folder / "golden.json")
        proxy.load(folder / "proxy")
        self.second.load(folder / "second")
        file = folder / "trained.json"
        self.heard = msgspec.json.decode(file.read_bytes(), type=_Heard) if file.exists() else _Heard()

    def hear(self, turns: Sequence[Turn], feedback: Sequence[Feedback], deleted: Collection[Person] = ()) -> Heard:
        """Learns what is new in all turns and statements so far. Statements that count no more are unlearned, and so is
        whatever deleted persons have said. Blocks while models learn."""
        trained = self.rules.trained()
        self._reserve(turns, feedback, trained | self.heard.prompts())
        kept_out = KeptOut(
            frozenset(deleted), lambda messages: self.rules.held_out(messages) or self.golden.holds(messages)
        )
        labels = labels_of(turns, feedback, self.rules.labels, kept_out, metrics=self.rules.metrics)
        self._forget(labels, frozenset(one.id for one in feedback), deleted)
        self.golden.grow([one for one in labels.golden if prompt_key(one.item.messages) not in trained])
        self.heard.trained |= {event.id: _trained(event) for event in labels.events}
        # What is trained on is written down first: a prompt that was may never become golden, even after a death.
        self._keep()
        for name, model in self._models():
            self._teach(name, model, labels.events)
        self._keep()
        newest = self.golden.latest(self.rules.golden.fewest_events)
        found = agreement(self.proxy, newest) if newest else None
        return Heard(self.proxy.version, labels, found, alarm_of(found))

    def _reserve(self, turns: Sequence[Turn], feedback: Sequence[Feedback], trained: Collection[str]) -> None:
        """Prompts that a reviewer has labelled for the golden set, by the tag `golden`, but for those trained on. A
        label on a whole episode is about all its turns."""
        labels: dict[str, list[Feedback]] = defaultdict(list)
        for said in filter(is_golden, feedback):
            labels[said.target_id].append(said)
        for turn in turns if labels else ():
            near = (*labels.get(turn.id, ()), *labels.get(turn.episode_id, ()))
            is_labelled = any(is_about(said, turn) for said in near)
            if is_labelled and turn.messages and prompt_key(turn.messages) not in trained:
                self.golden.reserve(turn.messages, trained)

    def _models(self) -> list[tuple[str, Forgetting]]:
        return [("proxy", self.proxy), ("second", self.second)]

    def _teach(self, name: str, model: Forgetting, events: Sequence[LabelledEvent]) -> None:
        """Gives a reward what is its own and new. By id, and not by the place in the feed: a statement may come before
        its turn is there, and is an event only later."""
        known = self.heard.learned.setdefault(name, set()) | model.known()
        own = [event for event in events if is_for_second(event, self.rules.second_share) == (name == "second")]
        new = [event for event in own if event.id not in known]
        model.update(new)
        model.save(self.folder / name)
        self.heard.learned[name] = known | {event.id for event in new}

    def _forget(self, labels: Labels, feed: frozenset[str], deleted: Collection[Person]) -> None:
        """Unlearns statements that count no more or are held out now, and all of persons who were deleted since the
        last time: what they said, what was said of their turns, and what has left the feed with them."""
        names = {owner_of(person) for person in deleted} | {one.user for one in deleted if one.user}
        new = {name for name in names if _hashed(name) not in self.heard.deleted}
        theirs: set[str] = set()
        if new:
            trained = self.heard.trained.items()
            theirs = {id for id, one in trained if id not in feed or not new.isdisjoint(one.persons)}
            theirs |= self.golden.ids() - feed
        held_out = {event.id for event in labels.golden}
        ids = labels.withdrawn | theirs | held_out
        self.golden.without(persons=names, ids=ids - held_out)
        for name, model in self._models():
            known = self.heard.learned.get(name, set()) | model.known()
            model.forget(persons=new, ids=ids & known)
            self.heard.learned[name] = known - ids
            if new or ids & known:
                # Saved before it is noted that anybody was forgotten, so that a death in between forgets once more.
                model.save(self.folder / name)
                model.drop_older(self.folder / name)
        # A prompt that was trained on stays one where a statement was only taken back: candidates know it still.
        self.heard.trained = {id: one for id, one in self.heard.trained.items() if id not in theirs}
        self.heard.deleted |= {_hashed(name) for name in names}

    def _keep(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.golden.save(self.folder / "golden.json")
        new = self.folder / ".trained.json.new"
        with open(new, "wb") as file:
            file.write(msgspec.json.encode(self.heard))
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, self.folder / "trained.json")


def _trained(event: LabelledEvent) -> _Trained:
    persons = dict.fromkeys(name for name in (event.person, *event.owners) if name != NOBODY)
    return _Trained(prompt_key(event.item.messages), tuple(persons))


def _hashed(name: str) -> str:
    """A person's name as it is remembered after a deletion: enough to know it again, and not to read it."""
    return hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:16]


def alarm_of(found: Agreement | None) -> str:
    """A sentence where a reward has come to disagree with what people say now of golden prompts, else "". Not by a
    closed part: it may be from before a change of taste, and a reward that has followed people would be blamed for
    it."""
    if found is None or found.against_coin > -SURE:
        return ""
    told = ((found.pairs, "pairs"), (found.marks, "marks"))
    shares = " and ".join(f"{share:.0%} of {what}" for share, what in told if share is not None)
    return (
        f"the reward orders {shares} among the newest {found.n} golden statements as people did: worse than a coin; "
        "nothing is trained until it agrees with them again"
    )

"""A reward without a base model: a linear function of hashed pieces and of form, learned event by event.

A preference is Bradley–Terry, −log σ(r(better) − r(worse)); a mark is logistic, with a bias that preferences do not
see. Centring adds λ · (r⁺ + r⁻)² to a pair's loss (Eisenstein et al. 2023, arXiv 2312.09244). After every update the
rewards of a reference set, frozen early on, say where 0 is and what 1 means: scores of two versions can be compared.
The newest events, each scored before it is learned from, give the slope from scores to chances, and tell when people
have changed their minds: then nothing counts as certain any more, and what came since the change is learned again.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from loreloop.learn.loop.reward.calibration import Link, Outcome, accuracy, fitted_link, log_loss, slope_of
from loreloop.learn.loop.reward.events import NOBODY, DataRange, LabelledEvent, RewardVersion, Scored, range_with
from loreloop.learn.loop.reward.features import Features, Row
from loreloop.learn.loop.reward.head import Head, Prior
from loreloop.learn.loop.reward.keeping import drop_files, newest, save_version
from loreloop.learn.loop.reward.rows import Rows
from loreloop.learn.loop.reward.watchers import ChangeWatch, Ledger

KIND = "linear"
ENOUGH_TO_WATCH = 100  # outcomes before a change of taste can be told from not knowing yet
REFIT_EVERY = 25  # events between two fits of the link
TURNED = 0.8  # of the slope that the events since a change give to the old weights, for they are few


@dataclass(frozen=True)
class LinearSettings:
    """`half_life_events`: after so many events one counts half. `person_cap`: events of one person that count at a
    time, and `cap_half_life_days` until half of them are forgiven. `replay`: old events that are repeated with each
    new one, at the weight of `replay_weight`; measured, they add nothing to a second-order step, so there are none by
    default."""

    features: Features = field(default_factory=Features)
    prior: Prior = field(default_factory=Prior)
    half_life_events: float = 500.0
    centring: float = 0.01
    person_cap: float = 25.0
    cap_half_life_days: float = 7.0
    change_limit: float = 6.5
    n_reference: int = 64
    window: int = 400  # outcomes that the link is fitted to
    buffer: int = 1000  # events that are kept as numbers, for replay, changes of taste, and forgetting a person
    replay: int = 0
    replay_weight: float = 0.05
    seed: int = 0


@dataclass(frozen=True)
class Origin:
    """Where an event's numbers come from: whose voice it is, which statement, and whose turns it speaks of."""

    person: str = NOBODY
    id: str = ""
    owners: tuple[str, ...] = ()

    def is_of(self, persons: Collection[str], ids: Collection[str]) -> bool:
        """Whether it is one of these persons' or one of these statements."""
        return self.person in persons or self.id in ids or any(owner in persons for owner in self.owners)


@dataclass(frozen=True)
class Learned:
    """One event as numbers: what it was learned from. An answer of the reference set is one without a weight."""

    row: Row
    outcome: float
    weight: float
    origin: Origin = Origin()

    @property
    def person(self) -> str:
        """Whose voice it is."""
        return self.origin.person


@dataclass(frozen=True)
class _Seen:
    """An event's numbers: those of the answer, or a pair's difference and sum."""

    row: Row
    total: Row | None


class LinearReward:
    """A `RewardModel`. `reference` are the answers by which scores are made comparable; without any, the first ones
    that the events bring are taken."""

    def __init__(self, settings: LinearSettings | None = None, reference: Sequence[Scored] = ()) -> None:
        self.settings = settings or LinearSettings()
        self.version = RewardVersion(number=0, kind=KIND, data=DataRange())
        self.reference = [Learned(self.row(item), 0.0, 0.0) for item in reference]
        self.frozen = bool(reference)
        self._begin()

    def _begin(self) -> None:
        settings = self.settings
        features = settings.features
        keep = 0.5 ** (1 / settings.half_life_events)
        # One more number than the form has: the bias of marks.
        self.head = Head(features.n_form + 1, 1 << features.bits, settings.prior, keep)
        self.ledger = Ledger(settings.person_cap, settings.cap_half_life_days)
        self.watch = ChangeWatch(settings.change_limit)
        self.outcomes: deque[Outcome] = deque(maxlen=settings.window)
        self.learned: deque[Learned] = deque(maxlen=settings.buffer)
        self.link, self.n_since_fit, self.persons = Link(), 0, set[str]()

    def update(self, events: Sequence[LabelledEvent]) -> RewardVersion:
        """One pass over new events, in the order of their numbers; the cost of each does not depend on how many there
        were. Without events the version stays what it was."""
        if not events:
            return self.version
        changes = 0
        for event in sorted(events, key=lambda one: one.number):
            self._take_reference(event)
            counts = self.ledger.counted(event)
            # What is above a person's cap is seen as data, and moves nothing.
            if counts > 0:
                changes += self._event(event, counts)
            self.persons |= {event.person} - {NOBODY}
        self.version = self._next(events, f"{changes} change(s) of taste found" if changes else "")
        return self.version

    def score(self, items: Sequence[Scored]) -> list[float]:
        """A number for each answer, in spreads of the reference set from its mean."""
        version = self.version
        return [(self.head.raw(self.row(item)) - version.mean) / version.spread for item in items]

    def chance(self, better: Scored, worse: Scored) -> float:
        """The chance that a person says that the one is better than the other."""
        return self.link(self.head.raw(self.row(better).minus(self.row(worse))))

    def forget(self, persons: Collection[str] = (), ids: Collection[str] = ()) -> RewardVersion:
        """Learns anew without some persons, and without statements that it has learned from, from the events that are
        still kept as numbers: nothing of what is forgotten is left in weights, link or reference set. Where there is
        nothing to forget, the version stays what it was."""
        kept = [one for one in self.learned if not one.origin.is_of(persons, ids)]
        anchors = [one for one in self.reference if not one.origin.is_of(persons, ids)]
        # A statement may have been learned from so long ago that its numbers are not kept: it is in the weights still.
        n_before = len(self.learned) + len(self.reference)
        if len(kept) + len(anchors) == n_before and not self.persons & {*persons} and not ids:
            return self.version
        # The next answers take the places that are free now.
        self.frozen = self.frozen and len(anchors) == len(self.reference)
        self.reference = anchors
        known = self.persons - set(persons)
        spent = {person: spent for person, spent in self.ledger.spent.items() if person not in persons}
        self._begin()
        self.persons, self.ledger.spent = known, spent
        self._again(kept)
        self._refit()
        self.version = self._next((), f"learned anew without {len(persons)} persons and {len(ids)} statements")
        return self.version

    def known(self) -> set[str]:
        """The ids of the statements that are still kept, of those learned from."""
        return {one.origin.id for one in self.learned}

    def save(self, folder: Path) -> None:
        """Keeps the version in a folder of its own below `folder`."""
        if self.version.number:
            save_version(folder, self.version, {"weights.npz": self._weights(), "state.json": self._state()})

    def drop_older(self, folder: Path) -> None:
        """Leaves only the newest version's files, since older ones hold what was forgotten."""
        drop_files(folder, kept=1)

    def load(self, folder: Path) -> None:
        """Takes back the newest version that is whole. BadRequest where the folder is of another kind of reward;
        ValueError where it was saved with other features."""
        kept = newest(folder, KIND)
        if kept is None:
            return
        self._begin()
        with np.load(io.BytesIO(kept.files["weights.npz"])) as file:
            arrays = {name: file[name] for name in file.files}
        self.head.take(arrays)
        state = msgspec.json.decode(kept.files["state.json"])
        anchors = Rows.of_arrays(arrays, "reference").rows()
        self.reference = [_learned(row, said) for row, said in zip(anchors, state["reference"], strict=True)]
        learned = Rows.of_arrays(arrays, "learned").rows()
        self.learned.extend(_learned(row, said) for row, said in zip(learned, state["learned"], strict=True))
        self.outcomes.extend(Outcome(*one) for one in state["outcomes"])
        self.ledger.restore(state["ledger"])
        self.watch.restore(state["watch"])
        self.persons, self.frozen = set(state["persons"]), state["frozen"]
        self.version = kept.version
        self.link, self.n_since_fit = Link(*state["link"]), state["n_since_fit"]

    def _weights(self) -> bytes:
        arrays = self.head.arrays()
        arrays |= Rows([one.row for one in self.reference]).arrays("reference")
        arrays |= Rows([one.row for one in self.learned]).arrays("learned")
        file = io.BytesIO()
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        return file.getvalue()

    def _state(self) -> bytes:
        state: dict[str, Any] = {
            "learned": [_said(one) for one in self.learned],
            "reference": [_said(one) for one in self.reference],
            "outcomes": [[one.score, one.said] for one in self.outcomes],
            "ledger": self.ledger.state(),
            "watch": self.watch.state(),
            "persons": sorted(self.persons),
            "frozen": self.frozen,
            "link": [self.link.slope, self.link.noise],
            "n_since_fit": self.n_since_fit,
        }
        return msgspec.json.encode(state)

    def _event(self, event: LabelledEvent, weight: float) -> bool:
        """Learns from one event; says whether it has shown a change of taste."""
        seen = self._seen(event)
        score = self.head.raw(seen.row)
        outcome = event.value if event.worse is None else 1.0
        one = Learned(seen.row, outcome, weight, _origin(event))
        changed = self._watched(one, score)
        self._learn(one, score)
        if seen.total is not None and self.settings.centring:
            self.head.pull(seen.total, 2 * self.settings.centring * weight)
        if changed:
            self._turn()
        return changed

    def _learn(self, one: Learned, score: float) -> None:
        self.outcomes.append(Outcome(score, one.outcome))
        self.head.learn(one.row, one.outcome, one.weight)
        for old in self._replayed():
            self.head.repeat(old.row, old.outcome, old.weight * self.settings.replay_weight)
        self.learned.append(one)
        self.n_since_fit += 1
        if self.n_since_fit >= REFIT_EVERY:
            self._refit()

    def _watched(self, one: Learned, score: float) -> bool:
        if len(self.outcomes) < ENOUGH_TO_WATCH:
            return False
        chance = self.link(score)
        given = chance**one.outcome * (1 - chance) ** (1 - one.outcome)
        n_persons = len({each.person for each in self.learned} | {one.person})
        return self.watch.take(one.person, given, one.weight, n_persons)

    def _turn(self) -> None:
        """People have changed their minds. How far the old weights still hold, or hold backwards, the events since
        then say by one slope; with it the weights begin anew, and those events are learned again."""
        n = min(len(self.watch.since), len(self.learned))
        since = list(self.outcomes)[-n:]
        before = slope_of(list(self.outcomes)[:-n])
        share = slope_of(since) / before if before > 0 else 0.0
        again = [self.learned.pop() for _ in range(n)][::-1]
        self.head.begin_anew(TURNED * min(1.0, max(-1.0, share)))
        self.outcomes.clear()
        self.watch.since = []
        self._again(again)

    def _again(self, events: Iterable[Learned]) -> None:
        for one in events:
            self._learn(one, self.head.raw(one.row))

    def _replayed(self) -> list[Learned]:
        """Old events, the newer the likelier, by a draw that depends on the seed and on the events' number alone."""
        if not self.settings.replay or not self.learned:
            return []
        rng = np.random.default_rng([self.settings.seed, self.head.n_events])
        ages = np.minimum(rng.exponential(self.settings.half_life_events / np.log(2), self.settings.replay), 1e9)
        return [self.learned[-1 - int(age) % len(self.learned)] for age in ages]

    def _refit(self) -> None:
        self.link, self.n_since_fit = fitted_link(list(self.outcomes)), 0

    def _next(self, events: Sequence[LabelledEvent], note: str) -> RewardVersion:
        raw = np.array([self.head.raw(one.row) for one in self.reference] or [0.0])
        spread = float(raw.std())
        spread = spread if spread > 1e-9 else 1.0
        enough, outcomes = len(self.outcomes) >= ENOUGH_TO_WATCH, list(self.outcomes)
        return RewardVersion(
            number=self.version.number + 1,
            kind=KIND,
            data=range_with(self.version.data, events, len(self.persons)),
            mean=float(raw.mean()),
            spread=spread,
            slope=self.link.slope * spread,
            noise=self.link.noise,
            n_reference=len(self.reference),
            accuracy=accuracy(outcomes) if enough else None,
            loss=log_loss(self.link, outcomes) if enough else None,
            note=note,
        )

    def _take_reference(self, event: LabelledEvent) -> None:
        if not self.frozen:
            rows = [self.row(item) for item in (event.item, event.worse) if item is not None]
            self.reference += [Learned(row, 0.0, 0.0, _origin(event)) for row in rows]
            self.frozen = len(self.reference) >= self.settings.n_reference

    def _seen(self, event: LabelledEvent) -> _Seen:
        better = self.row(event.item)
        if event.worse is None:
            better.form[-1] = 1.0
            return _Seen(better, None)
        worse = self.row(event.worse)
        return _Seen(better.minus(worse), better.plus(worse))

    def row(self, item: Scored) -> Row:
        """The numbers of one answer, as the head reads them."""
        row = self.settings.features.row(item)
        return Row(np.append(row.form, 0.0), row.places, row.values)


def _origin(event: LabelledEvent) -> Origin:
    return Origin(event.person, event.id, event.owners)


def _said(one: Learned) -> list[Any]:
    """All of an event but its row, as JSON can hold it."""
    return [one.outcome, one.weight, one.origin.person, one.origin.id, one.origin.owners]


def _learned(row: Row, said: list[Any]) -> Learned:
    """Takes back what `_said` gave."""
    outcome, weight, person, id, owners = said
    return Learned(row, outcome, weight, Origin(person, id, tuple(owners)))

"""From turns and what was said of them to what a reward learns: preferences and marks, with everything left out that
must not be learned from, counted by why.

What counts is what people say now: the newest statement of the same source and `who` about the same target and metric,
neither retracted nor overridden. An edit is a preference for the corrected answer. A statement on an episode is shared
out among its turns. Knows no reward model.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from loreloop.learn.loop.reward.events import (
    NOBODY,
    HeldOut,
    LabelledEvent,
    Scored,
    answer_of,
    nothing_held_out,
    owner_of,
    prompt_key,
)
from loreloop.learn.loop.reward.standing import Reason, agreed, current, once
from loreloop.protocol.episodes import EMPTY, REFUSED, Person, Turn
from loreloop.protocol.feedback import (
    ACCEPTED,
    BUILT_IN,
    EDIT,
    PREFERENCE,
    SCORE,
    THUMB,
    TOOL_OK,
    VERDICT,
    Feedback,
    Metric,
    Source,
)
from loreloop.protocol.feedback_rules import is_about, is_golden

GONE: tuple[Reason, ...] = ("unknown_turn", *EMPTY)  # nobody has taken anything back


class LabelRules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much statements count, by metric and by source; what is not named is not learned from. `agreement`: where two
    voices or more have spoken of the same answers, at least this share must be on one side, or nobody is followed."""

    metrics: dict[str, float] = msgspec.field(
        default_factory=lambda: {
            **dict.fromkeys((THUMB, SCORE, EDIT, PREFERENCE, VERDICT), 1.0),
            ACCEPTED: 0.5,
            TOOL_OK: 0.25,
        }
    )
    sources: dict[Source, float] = msgspec.field(
        default_factory=lambda: dict[Source, float]({"human": 1.0, "code": 1.0, "judge": 0.5, "implicit": 0.25})
    )
    agreement: float = 0.6


@dataclass(frozen=True)
class KeptOut:
    """What is never trained on, whatever is said of it: deleted persons, and prompts of the golden set. Consent is each
    turn's own."""

    deleted: Collection[Person] = frozenset()
    held_out: HeldOut = nothing_held_out


@dataclass(frozen=True)
class Labels:
    """`events` are to be learned from, `golden` are those about held-out prompts, both in the order of their numbers.
    `withdrawn` are the ids of statements that people have taken back, in one way or another: a reward that has learned
    from them forgets them. `left_out` counts statements by why they are no events."""

    events: tuple[LabelledEvent, ...]
    golden: tuple[LabelledEvent, ...]
    withdrawn: frozenset[str]
    left_out: Mapping[Reason, int]


@dataclass(frozen=True)
class _Usual:
    """What all events of one statement share."""

    said: Feedback
    voice: str
    weight: float
    owners: tuple[str, ...]

    def event(self, item: Scored, worse: Scored | None = None, value: float = 1.0) -> LabelledEvent:
        """The statement as an event about one answer or two."""
        said = self.said
        return LabelledEvent(
            id=said.id,
            number=said.number,
            person=self.voice,
            created=said.created,
            metric=said.metric,
            source=said.source,
            item=item,
            worse=worse,
            value=value,
            weight=self.weight,
            owners=self.owners,
        )


@dataclass
class _Sorting:
    """One pass over the statements."""

    turns: Mapping[str, Turn]
    episodes: Mapping[str, Sequence[Turn]]
    rules: LabelRules
    metrics: Mapping[str, Metric]
    deleted: frozenset[Person]
    left_out: Counter[Reason] = field(default_factory=Counter)
    gone: set[str] = field(default_factory=set)  # statements whose turns are not there any more, or not yet

    def events(self, said: Feedback) -> list[LabelledEvent]:
        """What one statement says, as events; none where it must not be learned from."""
        weight = self.rules.metrics.get(said.metric, 0.0) * self.rules.sources.get(said.source, 0.0)
        metric = self.metrics.get(said.metric)
        if weight == 0 or metric is None or metric.kind == "comment":
            return self._no(said, "not_a_label")
        targets = self._targets(said)
        if not targets:
            return self._no(said, "unknown_turn")
        usable = [turn for turn in targets if self._why_not(turn, said) is None]
        if not usable:
            return self._no(said, self._why_not(targets[0], said) or "unknown_turn")
        return [one for turn in usable for one in self._of_turn(said, metric, turn, weight / len(usable))]

    def _targets(self, said: Feedback) -> Sequence[Turn]:
        if said.level == "episode":
            return [turn for turn in self.episodes.get(said.target_id, ()) if is_about(said, turn) and not turn.side]
        return [self.turns[said.target_id]] if said.target_id in self.turns else []

    def _why_not(self, turn: Turn, said: Feedback) -> Reason | None:
        users = {person.user for person in self.deleted if person.user}
        if turn.person in self.deleted or (said.source in ("human", "implicit") and said.who in users):
            return "deleted_person"
        if not turn.consent:
            return "no_consent"
        if turn.side:
            return "side"
        return next((fate for fate in (*REFUSED, *EMPTY) if fate == turn.fate), None)

    def _of_turn(self, said: Feedback, metric: Metric, turn: Turn, weight: float) -> list[LabelledEvent]:
        item, usual = item_of(turn), _Usual(said, voice_of(said, turn), weight, (owner_of(turn.person),))
        if metric.kind == "demonstration":
            if str(said.value).strip() == item.answer.strip():
                return self._no(said, "unchanged")
            return [usual.event(Scored(turn.messages, str(said.value)), worse=item)]
        if metric.kind == "preference":
            return self._preference(turn, usual)
        value = float(said.value) if isinstance(said.value, bool | int | float) else -1.0
        if not 0.0 <= value <= 1.0:
            return self._no(said, "out_of_range")
        return [usual.event(item, value=value if metric.optimize == "max" else 1.0 - value)]

    def _preference(self, turn: Turn, usual: _Usual) -> list[LabelledEvent]:
        worse = self.turns.get(str(usual.said.value))
        if worse is None:
            return self._no(usual.said, "unknown_turn")
        if (why := self._why_not(worse, usual.said)) is not None:
            return self._no(usual.said, why)
        if prompt_key(worse.messages) != prompt_key(turn.messages):
            return self._no(usual.said, "different_prompts")
        if answer_of(worse.answer).strip() == answer_of(turn.answer).strip():
            return self._no(usual.said, "unchanged")
        both = tuple(dict.fromkeys((*usual.owners, owner_of(worse.person))))
        return [replace(usual, owners=both).event(item_of(turn), worse=item_of(worse))]

    def _no(self, said: Feedback, reason: Reason) -> list[LabelledEvent]:
        self.left_out[reason] += 1
        if reason in GONE:
            self.gone.add(said.id)
        return []


def labels_of(
    turns: Iterable[Turn],
    feedback: Iterable[Feedback],
    rules: LabelRules | None = None,
    kept_out: KeptOut | None = None,
    *,
    metrics: Mapping[str, Metric] | None = None,
    since: int = 0,
) -> Labels:
    """What all of this says. `feedback` is the feed from its beginning, or from so early that nothing before it is of
    interest; of events, those after the number `since` are given. `metrics` are those that the
    deployment has declared, beside those that every one has."""
    rules, kept_out = rules or LabelRules(), kept_out or KeptOut()
    by_id, episodes = {turn.id: turn for turn in turns}, defaultdict[str, list[Turn]](list)
    for turn in by_id.values():
        episodes[turn.episode_id].append(turn)
    statements = sorted(feedback, key=lambda one: one.number)
    sorting = _Sorting(
        turns=by_id,
        episodes=episodes,
        rules=rules,
        metrics={**BUILT_IN, **(metrics or {})},
        deleted=frozenset(kept_out.deleted),
    )
    standing = current(statements, sorting.left_out)
    events = [event for said in standing for event in sorting.events(said)]
    events = agreed(once(events, sorting.left_out), rules.agreement, sorting.left_out)
    golden = [event for event in events if kept_out.held_out(event.item.messages)]
    # A label to measure with, on a prompt that was trained on before it: it can measure nothing, and teaches nothing.
    to_measure = {said.id for said in standing if is_golden(said)}
    rest = [event for event in events if not kept_out.held_out(event.item.messages)]
    learned = [event for event in rest if event.id not in to_measure]
    sorting.left_out["golden"] += len(rest) - len(learned)
    living = {event.id for event in events}
    return Labels(
        events=tuple(event for event in learned if event.number > since),
        golden=tuple(golden),
        withdrawn=frozenset({said.id for said in statements} - living - sorting.gone),
        left_out={reason: n for reason, n in sorting.left_out.items() if n},
    )


def item_of(turn: Turn) -> Scored:
    """A turn's answer with what it answers."""
    return Scored(turn.messages, answer_of(turn.answer))


def voice_of(said: Feedback, turn: Turn) -> str:
    """Whose opinion a statement is, for the cap on persons: its `who`, or else the person who talked. What code and
    judges say is nobody's opinion, and has no cap."""
    if said.source in ("code", "judge"):
        return NOBODY
    return said.who or owner_of(turn.person)

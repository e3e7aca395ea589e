"""What users say of a candidate beside the champion: episodes of either arm as numbers, and what these decide.

Pure functions over turns and statements. Knows no server; the statistics are those of `sequential.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from loreloop.learn.loop.collecting import newest_of, person_of, said_of
from loreloop.learn.loop.config import Canary
from loreloop.learn.loop.sequential import Outcome, Trial, difference, judge, paired
from loreloop.protocol.episodes import Turn
from loreloop.protocol.feedback import EDIT, Feedback, Metric

PROMOTES, ROLLS_BACK = ("better", "no_harm"), ("harmful", "no_better")


@dataclass(frozen=True)
class Evidence:
    """Judged episodes of either arm, each in 0 … 1, in the order in which they were first judged."""

    candidate: tuple[float, ...] = ()
    champion: tuple[float, ...] = ()
    n_mixed: int = 0


@dataclass
class _Arms:
    candidate: list[float] = field(default_factory=list)
    champion: list[float] = field(default_factory=list)


def evidence_of(
    turns: Iterable[Turn],
    statements: Iterable[Feedback],
    rules: Canary,
    since_version: int,
    metrics: Mapping[str, Metric],
) -> Evidence:
    """The episodes that began with the canary or behind it. An episode that two revisions answered, or a person's own
    adapter, is left out, and so are side turns, and what one person has judged beyond their share."""
    by_id = {turn.id: turn for turn in newest_of(turns).values() if not turn.side and turn.version >= since_version}
    arms, mixed = _arms_of(by_id.values())
    scores: dict[str, list[float]] = defaultdict(list)
    first: dict[str, int] = {}
    persons: dict[str, str] = {}
    for turn_id, said in said_of(by_id, statements).items():
        turn = by_id[turn_id]
        values = [value for one in said if (value := score_of(one, rules, metrics)) is not None]
        if values and turn.episode_id in arms:
            scores[turn.episode_id] += values
            persons[turn.episode_id] = person_of(turn)
            first[turn.episode_id] = min(first.get(turn.episode_id, said[0].number), said[0].number)
    found, counted = _Arms(), defaultdict[str, int](int)
    for episode in sorted(first, key=lambda one: first[one]):
        counted[persons[episode]] += 1
        if counted[persons[episode]] <= rules.most_per_person:
            side = found.candidate if arms[episode] == "canary" else found.champion
            side.append(mean(scores[episode]))
    return Evidence(tuple(found.candidate), tuple(found.champion), mixed)


def _arms_of(turns: Iterable[Turn]) -> tuple[dict[str, str], int]:
    """The one arm of each episode, and how many episodes have had two."""
    seen: dict[str, set[str]] = defaultdict(set)
    for turn in turns:
        seen[turn.episode_id].add("mixed" if turn.fate == "mixed" else turn.arm)
    whole = {episode: next(iter(arms)) for episode, arms in seen.items() if len(arms) == 1}
    return {episode: arm for episode, arm in whole.items() if arm in ("main", "canary")}, sum(
        len(arms) > 1 or "mixed" in arms for arms in seen.values()
    )


def score_of(one: Feedback, rules: Canary, metrics: Mapping[str, Metric]) -> float | None:
    """A statement as satisfaction in 0 … 1: an answer that had to be corrected was not what was wanted. None for what
    is no satisfaction, or not among the loop's metrics."""
    if one.metric not in rules.metrics:
        return None
    if one.metric == EDIT:
        return 0.0
    if isinstance(one.value, str):
        return None
    value = min(1.0, max(0.0, float(one.value)))
    metric = metrics.get(one.metric)
    return 1.0 - value if metric is not None and metric.optimize == "min" else value


def trial_of(rules: Canary) -> Trial:
    """The trial that the settings describe."""
    return Trial(
        gain=rules.gain,
        harm=rules.harm,
        false_promotion=rules.false_promotion,
        false_alarm=rules.false_alarm,
        least=rules.least_episodes,
        most=rules.most_episodes,
        needs_gain=rules.promote_on == "gain",
    )


@dataclass(frozen=True)
class Watched:
    """What a look at the canary has found: the outcome, its numbers for a row, and a sentence."""

    outcome: Outcome
    numbers: dict[str, Any]
    sentence: str


def watch(evidence: Evidence, rules: Canary) -> Watched:
    """Looks at the evidence once; may be done as often as one likes."""
    outcome = judge(evidence.candidate, evidence.champion, trial_of(rules))
    interval = difference(paired(evidence.candidate, evidence.champion), 2 * rules.false_alarm)
    numbers = {
        "candidate_episodes": len(evidence.candidate),
        "champion_episodes": len(evidence.champion),
        "mixed_episodes": evidence.n_mixed,
        "candidate_satisfaction": _mean(evidence.candidate),
        "champion_satisfaction": _mean(evidence.champion),
        "difference_low": interval.low,
        "difference_high": interval.high,
        "evidence_of_gain": outcome.gain,
        "evidence_of_harm": outcome.loss,
    }
    if outcome.p_value is not None:
        numbers["p_value"] = outcome.p_value
    return Watched(outcome, numbers, sentence_of(outcome, numbers, rules))


def sentence_of(outcome: Outcome, numbers: Mapping[str, Any], rules: Canary) -> str:
    """Why the candidate was not promoted yet, or what was decided."""
    n, m = numbers["candidate_episodes"], numbers["champion_episodes"]
    between = f"between {numbers['difference_low']:+.2f} and {numbers['difference_high']:+.2f}"
    after = f"After {n} episodes of the candidate and {m} of the champion"
    match outcome.kind:
        case "better":
            return f"{after}, users are more content with the candidate: {_means(numbers)}."
        case "no_harm":
            return f"{after}, the candidate is shown to lose no more than {rules.harm:g}: {_means(numbers)}."
        case "harmful":
            return f"{after}, users are less content with the candidate: {_means(numbers)}."
        case "no_better":
            return f"{after}, the most that the trial may have, no gain was shown: {_means(numbers)}."
    if min(n, m) < rules.least_episodes:
        return f"{after} were judged; {rules.least_episodes} of either are the least before anything is promoted."
    needed = 4 / rules.false_promotion if rules.promote_on == "gain" else 1 / rules.false_promotion
    return (
        f"{after}, the difference lies {between}; the evidence of a gain is {outcome.gain:.1f} of the {needed:.0f} "
        f"that promote before {rules.most_episodes} episodes are reached."
    )


def _means(numbers: Mapping[str, Any]) -> str:
    one, other = numbers["candidate_satisfaction"], numbers["champion_satisfaction"]
    return f"{one or 0:.2f} beside {other or 0:.2f}"


def _mean(values: Sequence[float]) -> float | None:
    return float(mean(values)) if values else None

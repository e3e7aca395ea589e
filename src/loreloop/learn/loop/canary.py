"""What users say of a candidate beside the champion: episodes of either arm as numbers, and what these decide.

Pure functions over turns and statements. Knows no server; the statistics are those of `sequential.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from loreloop.learn.loop.clustered import Episode, Estimate, estimate
from loreloop.learn.loop.collecting import newest_of, person_of, said_of
from loreloop.learn.loop.config import Canary
from loreloop.learn.loop.sequential import Outcome, Trial, confidence, judge
from loreloop.protocol.episodes import Turn
from loreloop.protocol.feedback import EDIT, Feedback, Metric

EpisodeKey = tuple[str, str]
PROMOTES, ROLLS_BACK = ("better", "no_harm"), ("harmful", "no_better")


@dataclass(frozen=True)
class Evidence:
    """Judged episodes of either arm, in the order in which they were first judged, and how many had two arms."""

    episodes: tuple[Episode, ...] = ()
    n_mixed: int = 0

    def of(self, *, is_candidate: bool) -> list[float]:
        """How content the users of one arm were, an episode each."""
        return [one.value for one in self.episodes if one.is_candidate == is_candidate]


def evidence_of(
    turns: Iterable[Turn],
    statements: Iterable[Feedback],
    rules: Canary,
    since_version: int,
    metrics: Mapping[str, Metric],
    begun: Collection[EpisodeKey] = (),
) -> Evidence:
    """The episodes that began with the canary or behind it; `begun` are others of which it is known that they began
    before. An episode that two revisions answered, or a person's own adapter, is left out, and so are side turns, and
    what one person has judged beyond their share. Every version of the deployment is a stage: its share may have
    changed, and with it who is where."""
    plain = [turn for turn in newest_of(turns).values() if not turn.side]
    # Whoever was in the midst of a chat when the canary began can only stay with the champion, or leave as mixed.
    older = {episode_of(turn) for turn in plain if turn.version < since_version}.union(begun)
    by_id = {turn.id: turn for turn in plain if episode_of(turn) not in older}
    arms, mixed = _arms_of(by_id.values())
    scores: dict[EpisodeKey, list[float]] = defaultdict(list)
    first: dict[EpisodeKey, int] = {}
    persons: dict[EpisodeKey, str] = {}
    stages: dict[EpisodeKey, int] = {}
    for turn in by_id.values():
        key = episode_of(turn)
        stages[key] = min(stages.get(key, turn.version), turn.version)
    for turn_id, said in said_of(by_id, statements).items():
        turn, key = by_id[turn_id], episode_of(by_id[turn_id])
        values = [value for one in said if (value := score_of(one, rules, metrics)) is not None]
        if values and key in arms:
            scores[key] += values
            persons[key] = unit_of(turn)
            first[key] = min(first.get(key, said[0].number), said[0].number)
    found, counted = list[Episode](), defaultdict[str, int](int)
    for episode in sorted(first, key=lambda one: first[one]):
        person = persons[episode]
        counted[person] += 1
        if counted[person] <= rules.most_per_person:
            found.append(Episode(person, arms[episode] == "canary", mean(scores[episode]), stages[episode]))
    return Evidence(tuple(found), mixed)


def unit_of(turn: Turn) -> str:
    """Whom an episode counts for: its person, where the request named a `user`. Without one nobody can say which
    episodes are of one person; each is then taken for a person of its own, as its arm was drawn by itself too."""
    return person_of(turn) if turn.person.user else f"episode {turn.person.key_id} {turn.episode_id}"


def episode_of(turn: Turn) -> EpisodeKey:
    """Which episode a turn is of. Clients choose these ids, so that two keys may have the same."""
    return turn.person.key_id, turn.episode_id


def _arms_of(turns: Iterable[Turn]) -> tuple[dict[EpisodeKey, str], int]:
    """The one arm of each episode, and how many episodes have had two."""
    seen: dict[EpisodeKey, set[str]] = defaultdict(set)
    for turn in turns:
        seen[episode_of(turn)].add("mixed" if turn.fate == "mixed" else turn.arm)
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
        margin=rules.margin,
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


def watch(evidence: Evidence, rules: Canary, *, is_over: bool = False) -> Watched:
    """Looks at the evidence once; may be done as often as one likes. `is_over` says that the canary's days have passed,
    and asks for the last look at what there is."""
    outcome = judge(evidence.episodes, trial_of(rules), is_last=is_over)
    found = estimate(evidence.episodes)
    numbers = numbers_of(evidence, found, rules) | {
        "evidence_of_gain": outcome.gain,
        "evidence_of_harm": outcome.loss,
    }
    if outcome.p_value is not None:
        numbers["p_value"] = outcome.p_value
    sentence = sentence_of(outcome, numbers, rules)
    if is_over and not outcome.is_open:
        sentence = f"In {rules.most_days:g} days: {sentence}"
    return Watched(outcome, numbers, sentence)


def numbers_of(evidence: Evidence, found: Estimate, rules: Canary) -> dict[str, Any]:
    """What a decision's row says of the arms. The difference is that of persons' means, stage by stage, and so need not
    be the one between the two satisfactions, which are means over all episodes."""
    candidate, champion = evidence.of(is_candidate=True), evidence.of(is_candidate=False)
    interval = confidence(found, 2 * rules.false_alarm, rules.gain)
    return {
        "candidate_episodes": len(candidate),
        "champion_episodes": len(champion),
        "candidate_persons": found.candidate_persons,
        "champion_persons": found.champion_persons,
        "mixed_episodes": evidence.n_mixed,
        "candidate_satisfaction": _mean(candidate),
        "champion_satisfaction": _mean(champion),
        "difference": found.difference,
        "difference_low": interval.low,
        "difference_high": interval.high,
    }


def sentence_of(outcome: Outcome, numbers: Mapping[str, Any], rules: Canary) -> str:
    """Why the candidate was not promoted yet, or what was decided."""
    n, m = numbers["candidate_episodes"], numbers["champion_episodes"]
    between = f"between {numbers['difference_low']:+.2f} and {numbers['difference_high']:+.2f}"
    after = f"After {n} episodes of the candidate and {m} of the champion"
    needs_gain = rules.promote_on == "gain"
    match outcome.kind:
        case "better":
            return f"{after}, users are more content with the candidate: {_means(numbers)}."
        case "no_harm":
            return f"{after}, the candidate is shown to lose less than {rules.margin:g}: {_means(numbers)}."
        case "harmful":
            return f"{after}, users are less content with the candidate: {_means(numbers)}."
        case "no_better":
            missed = "no gain was shown" if needs_gain else f"a loss of {rules.margin:g} was not ruled out"
            return f"{after}, {missed} at the last look: {_means(numbers)}."
    if min(n, m) < rules.least_episodes:
        return f"{after} were judged; {rules.least_episodes} of either are the least before anything is promoted."
    what = "a gain" if needs_gain else f"a loss below {rules.margin:g}"
    return (
        f"{after}, the difference lies {between}; the evidence of {what} is {outcome.gain:.1f} of the "
        f"{trial_of(rules).early:.0f} that promote before {rules.most_episodes} episodes are reached."
    )


def _means(numbers: Mapping[str, Any]) -> str:
    one, other = numbers["candidate_satisfaction"], numbers["champion_satisfaction"]
    persons = f"{numbers['candidate_persons']} and {numbers['champion_persons']} persons"
    return f"{one or 0:.2f} beside {other or 0:.2f}, of {persons}"


def _mean(values: Sequence[float]) -> float | None:
    return float(mean(values)) if values else None

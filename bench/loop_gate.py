"""`python -m bench.loop_gate`: how often a canary is decided wrongly, and how soon rightly, over simulated users.

Thumbs at rates from 0.5 to 0.7, seven looks, 200 trials of at most 3,000 episodes over both arms.
No gain, a gain of five points, one of twenty-five, and a loss of ten. Three kinds of users: those who come once, half
of them with the candidate; the same behind a canary that begins with a tenth, while everybody grows more content; and
persons who come five times on average, of whose episodes two are correlated by 0.2. Beside the power to find five
points stands the most that any test of the same error could have at the same episodes, by Neyman and Pearson.
"""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import NormalDist

from bench.loop_trials import Users, ended
from bench.record import RESULTS, line, write_record
from bench.rig import Figure
from loreloop.learn.loop.sequential import Trial

TRIALS, LOOKS = 200, (100, 250, 500, 1000, 1500, 2000, 3000)
RATES = (0.5, 0.6, 0.7)  # of the champion
KINDS = {
    "once": Users(0, 0),
    "staged": Users(0, 0, staged=True, drift=0.05),
    "persons": Users(0, 0, episodes=5, alike=0.2, staged=True),
}
LARGER = 0.035  # an accepted chance of a wrong promotion that finds five points at every rate


@dataclass(frozen=True)
class Case:
    """One line of the table: who comes, and by which rules the trial is decided."""

    name: str
    users: Users
    trial: Trial = field(default_factory=Trial)


def main() -> None:
    started = time.monotonic()
    figures: list[Figure] = []
    table: dict[str, dict[str, float]] = {}
    with ProcessPoolExecutor(2) as pool:
        for case in cases():
            found = list(
                pool.map(partial(ended, case.users, trial=case.trial, looks=LOOKS), range(TRIALS), chunksize=10)
            )
            table[case.name] = shares = of_kinds(found)
            for figure in held(case, shares):
                figures.append(figure)
                print(line("loop-gate", figure), flush=True)
    seconds = round(time.monotonic() - started)
    write_record(RESULTS, "loop-gate", __doc__ or "", figures, trials=TRIALS, all=table, seconds=seconds)


def cases() -> list[Case]:
    """All lines: kinds of users, their rates and gains; then two other rules."""
    found = []
    for kind, users in KINDS.items():
        for rate in RATES:
            for gain in (0.0, 0.05, 0.25, -0.1):
                if rate + gain + users.drift <= 1:
                    moved = replace(users, champion=rate, candidate=rate + gain)
                    found.append(Case(f"{kind}, rate {rate:g}, {gain:+g}", moved))
    larger, no_harm = Trial(false_promotion=LARGER), Trial(needs_gain=False)
    for rate in RATES:
        for gain in (0.0, 0.05):
            users = Users(rate, rate + gain)
            found.append(Case(f"once, rate {rate:g}, {gain:+g}, false_promotion {LARGER:g}", users, larger))
        for loss in (-no_harm.margin, 0.0):
            users = Users(rate, rate + loss)
            found.append(Case(f"once, rate {rate:g}, {loss:+g}, no_harm", users, no_harm))
    return found


def held(case: Case, shares: dict[str, float]) -> list[Figure]:
    """The figures of one case, with the bars of those that have one."""
    gain = case.users.candidate - case.users.champion
    promoted = Figure(f"{case.name}: promoted", shares["better"] + shares["no_harm"], "share")
    if gain < -0.09:  # a loss of ten points, but for rounding
        harmful = Figure(f"{case.name}: rolled back for harm", shares["harmful"], "share")
        return [harmful, replace(promoted, at_most=0.05)]
    if gain <= 1e-9 and (case.trial.needs_gain or gain < -1e-9):
        return [replace(promoted, at_most=0.05)]
    episodes = Figure(f"{case.name}: episodes", shares["episodes"], "episodes", at_most=3000)
    is_held = not case.users.staged and case.trial.needs_gain
    if gain > 0.1 or not is_held:
        return [promoted, episodes]
    best = Figure(f"{case.name}: the most that a test can find", most_power(case), "share")
    return [replace(promoted, at_least=0.8), best, episodes]


def most_power(case: Case) -> float:
    """The power of the one-sided z-test whose whole error is spent at the end, half of the episodes in either arm."""
    users, n = case.users, case.trial.most / 2
    error = sum(rate * (1 - rate) / n for rate in (users.champion, users.candidate)) ** 0.5
    normal = NormalDist()
    return normal.cdf((users.candidate - users.champion) / error + normal.inv_cdf(case.trial.false_promotion))


def of_kinds(found: list[tuple[str, int]]) -> dict[str, float]:
    """The share of trials that ended in each way, and the median of their episodes."""
    kinds = ("better", "no_harm", "no_better", "harmful", "open")
    shares = {kind: sum(one == kind for one, _ in found) / len(found) for kind in kinds}
    return shares | {"episodes": statistics.median(n for _, n in found)}


if __name__ == "__main__":
    main()

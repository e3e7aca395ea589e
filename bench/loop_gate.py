"""`python -m bench.loop_gate`: how often a canary is decided wrongly, and how soon rightly, over simulated episodes.

Thumbs at rates from 0.5 to 0.9, half of the episodes with the candidate, a look behind every fifty. No gain, a gain of
five points, one of twenty-five, and a loss of ten, each in 200 trials of at most 3,000 episodes over both arms.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import numpy as np

from bench.record import RESULTS, line, write_record
from bench.rig import Figure
from loreloop.learn.loop.sequential import Trial, judge

TRIALS, LOOK_EVERY = 200, 50
RATES = (0.5, 0.6, 0.7, 0.8, 0.9)
MEANT = 0.7  # the champion's rate of the figures that are held to a bar


@dataclass(frozen=True)
class Ended:
    """How one trial ended, and after how many episodes of both arms."""

    kind: str
    episodes: int


def main() -> None:
    started = time.monotonic()
    figures: list[Figure] = []
    table: dict[str, dict[str, float]] = {}
    for rate in RATES:
        for gain in (0.0, 0.05, 0.25, -0.1):
            if not 0 <= rate + gain <= 1:
                continue
            found = [ended(rate, rate + gain, seed) for seed in range(TRIALS)]
            table[f"{rate:g} {gain:+g}"] = shares = of_kinds(found)
            figures += held(rate, gain, shares)
    write_record(
        RESULTS,
        "loop-gate",
        __doc__ or "",
        figures,
        trials=TRIALS,
        all=table,
        seconds=round(time.monotonic() - started),
    )
    for figure in figures:
        print(line("loop-gate", figure), flush=True)


def held(rate: float, gain: float, shares: dict[str, float]) -> list[Figure]:
    """The figures of one pair of rates; those at the rate that is meant have bars."""
    is_meant = rate == MEANT
    if gain == 0:
        return [Figure(f"rate {rate:g}: no gain, promoted", shares["better"], "share", at_most=0.05)]
    if gain < 0:
        harmful = Figure(f"rate {rate:g}: a loss of 10 points, rolled back for harm", shares["harmful"], "share")
        wrong = Figure(f"rate {rate:g}: a loss of 10 points, promoted", shares["better"], "share", at_most=0.05)
        return [harmful, wrong]
    bar = 0.8 if is_meant or gain > 0.05 else None
    name = f"rate {rate:g}: a gain of {100 * gain:g} points"
    return [
        Figure(f"{name}, promoted", shares["better"], "share", at_least=bar),
        Figure(f"{name}, episodes", shares["episodes"], "episodes", at_most=3000),
    ]


def of_kinds(found: list[Ended]) -> dict[str, float]:
    kinds = ("better", "no_better", "harmful", "open")
    shares = {kind: sum(one.kind == kind for one in found) / len(found) for kind in kinds}
    return shares | {"episodes": statistics.median(one.episodes for one in found)}


def ended(champion: float, candidate: float, seed: int) -> Ended:
    rng, trial = np.random.default_rng(seed), Trial()
    arms: tuple[list[float], list[float]] = ([], [])
    for _ in range(trial.most // LOOK_EVERY):
        for side in rng.integers(2, size=LOOK_EVERY):
            arms[side].append(float(rng.random() < (candidate, champion)[side]))
        if not (found := judge(*arms, trial)).is_open:
            break
    return Ended(found.kind, len(arms[0]) + len(arms[1]))


if __name__ == "__main__":
    main()

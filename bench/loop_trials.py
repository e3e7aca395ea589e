"""Simulated canaries: persons who come again and again, each as content as they are, and how a trial of them ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from loreloop.learn.loop.clustered import Episode
from loreloop.learn.loop.sequential import Trial, judge

LOOKS = (50, 100, 250, 500, 1000, 2000, 3000)


@dataclass(frozen=True)
class Users:
    """How content users are with either arm, as rates of thumbs up. Each person has so many episodes on average, and
    rates of their own: `alike` is the correlation of two episodes of one person. `drift` is by how much everybody's
    rate has changed when the trial ends. `staged`: a tenth meets the candidate at first, and half of them from its
    twentieth episode on; else half from the beginning."""

    champion: float
    candidate: float
    episodes: float = 1.0
    alike: float = 0.0
    drift: float = 0.0
    staged: bool = False


def canary(users: Users, seed: int, most: int) -> list[Episode]:
    """All episodes of one canary in their order."""
    drawn = np.random.default_rng(seed).random((most, 5)).tolist()
    places, effects = list[float](), list[float]()
    share, stage, n_candidate, found = 0.1 if users.staged else 0.5, 0, 0, list[Episode]()
    for n, (again, which, place, effect, luck) in enumerate(drawn):
        who = int(which * len(places))
        if not places or again <= 1 / users.episodes:
            who = len(places)
            places.append(place)
            effects.append(effect)
        is_candidate = places[who] < share
        rate = (users.candidate if is_candidate else users.champion) + users.drift * n / most
        up = luck < _moved(rate, effects[who], users.alike)
        found.append(Episode(f"person {who}", is_candidate, float(up), stage))
        n_candidate += is_candidate
        if users.staged and stage == 0 and n_candidate >= 20:
            share, stage = 0.5, 1
    return found


def _moved(rate: float, effect: float, alike: float) -> float:
    """A person's own rate. Some persons are always content and some never, in the shares of the mean rate; all others
    are as content as the mean: two episodes of one person are then correlated by `alike`, at any rate."""
    if not alike:
        return rate
    # The effect's first part says whether the person is fixed; the rest, which way.
    return rate if effect >= alike else float(effect / alike < rate)


def ended(users: Users, seed: int, trial: Trial | None = None, looks: Sequence[int] = LOOKS) -> tuple[str, int]:
    """How a canary ended that was looked at behind so many episodes, and after how many."""
    trial = trial or Trial()
    episodes = canary(users, seed, trial.most)
    for n in looks:
        found = judge(episodes[:n], trial)
        if not found.is_open:
            return found.kind, n
    return "open", trial.most


def share(kind: str, users: Users, trial: Trial | None = None, trials: int = 200) -> float:
    """The share of trials that end in one way."""
    return sum(ended(users, seed, trial)[0] == kind for seed in range(trials)) / trials

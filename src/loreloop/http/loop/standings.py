"""Where the loops of deployments stand, as they tell it, in memory: a loop tells it anew at its next look.

Of a running comparison every look is kept, thinned as they grow many, so that the course of its interval can be drawn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from loreloop.protocol.loop_rest import LoopStanding

MOST_LOOKS = 400


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """What a look at the evidence has found: the difference of candidate and champion after so many judged episodes of
    both, and the interval that holds it."""

    at: float
    n_episodes: int
    difference: float
    low: float
    high: float


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What a loop has told last, at a moment in seconds since the epoch, and the looks at its candidate of now."""

    at: float
    standing: LoopStanding
    looks: tuple[Look, ...] = ()


@dataclass
class Standings:
    """One per HTTP process; by the names of deployments."""

    told: dict[str, Told] = field(default_factory=dict)

    def tell(self, deployment: str, standing: LoopStanding, now: float) -> None:
        """Takes what a loop tells. Looks at another candidate, or of an earlier canary, are not gone on with."""
        before = self.told.get(deployment)
        looks = before.looks if before is not None and before.standing.candidate == standing.candidate else ()
        look = look_of(standing.numbers, now)
        if look is not None and (not looks or looks[-1].n_episodes != look.n_episodes):
            is_anew = bool(looks) and look.n_episodes < looks[-1].n_episodes
            looks = (*(() if is_anew else looks), look)
        if len(looks) > MOST_LOOKS:
            looks = (*looks[:-1:2], looks[-1])
        self.told[deployment] = Told(at=now, standing=standing, looks=looks)

    def forget(self, deployment: str) -> None:
        """For a deployment that is deleted: another one of its name has another loop."""
        self.told.pop(deployment, None)


def look_of(numbers: Mapping[str, float], now: float) -> Look | None:
    """The numbers of a comparison; None for those of anything else."""
    names = ("candidate_episodes", "champion_episodes", "difference", "difference_low", "difference_high")
    found: list[Any] = [numbers.get(name) for name in names]
    if not all(isinstance(each, int | float) and math.isfinite(each) for each in found):
        return None
    candidate, champion, difference, low, high = found
    return Look(at=now, n_episodes=int(candidate + champion), difference=difference, low=low, high=high)

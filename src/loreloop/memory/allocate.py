"""How many tokens each masked chunk may keep. The budgets sum exactly to what is free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Demand:
    """Of one masked chunk: `worth` per token once condensed, its tokens now and when condensed."""

    density: float
    tokens: int
    condensed: int


def allocate(demands: Sequence[Demand], free: int, minimum: int) -> list[int]:
    """A budget for every demand, in their order; 0 means that the chunk is dropped.

    The densest chunks get what they need when condensed. What is left then, too little for the next, goes to the next
    as an excerpt if it is `minimum` or more, else to those that were served, the densest first, up to their whole size
    and beyond: no budget lies between 0 and `minimum`, unless all that is free does.
    """
    budgets = [0] * len(demands)
    # Of equal densities the earlier chunk comes first, so that the same demands always get the same budgets.
    order = sorted(range(len(demands)), key=lambda n: (-demands[n].density, n))
    left = free
    for number in order:
        # A condensed chunk keeps nearly all of its worth, so this size is served before any other.
        need = demands[number].condensed
        if need <= left:
            budgets[number] = need
            left -= need
        # One excerpt at most, which takes all that is left: in pieces that would be too short to say anything.
        elif left >= minimum and not any(0 < budgets[n] < demands[n].condensed for n in order):
            budgets[number] = left
            left = 0
    for number in order:
        if budgets[number]:
            # What could be served condensed may become whole again, where tokens are left over.
            more = min(left, max(0, demands[number].tokens - budgets[number]))
            budgets[number] += more
            left -= more
    # The sum must be exact even where every chunk is whole already; a refill may leave the surplus unused.
    if left and order:
        budgets[order[0]] += left
    return budgets

"""The answers of one group compared two by two: a reward that needs no scale, only a judge who prefers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import combinations

from loreloop.learn.rewards.graders.grader import GraderTrouble, Means
from loreloop.learn.rewards.graders.judges import Pairwise
from loreloop.learn.rewards.reward import Score


async def win_rates(judge: Pairwise, task: str, answers: Sequence[str], means: Means) -> list[Score]:
    """The share of comparisons that each answer wins, a draw as half: n(n - 1) questions for n answers. Equal answers
    are a draw and are not asked about. An answer none of whose comparisons could be made has trouble."""
    pairs = [*combinations(range(len(answers)), 2)]
    shares = await asyncio.gather(*(_share(judge, task, (answers[a], answers[b]), means) for a, b in pairs))
    won: list[list[float]] = [[] for _ in answers]
    troubles: list[str] = []
    for (a, b), share in zip(pairs, shares, strict=True):
        # A comparison that failed is left out and not counted as a draw, which would be a judgement that nobody made.
        if isinstance(share, str):
            troubles.append(share)
        else:
            won[a].append(share)
            won[b].append(1 - share)
    if len(answers) == 1:
        return [Score(0.5)]
    nothing = Score(0.0, trouble=troubles[0] if troubles else "no other answer")
    return [Score(sum(each) / len(each), {"comparisons": float(len(each))}) if each else nothing for each in won]


async def _share(judge: Pairwise, task: str, pair: tuple[str, str], means: Means) -> float | str:
    """What the first of two answers wins, or why that could not be found."""
    # A judge that is asked about two equal texts can only tell which place it likes better.
    if pair[0] == pair[1]:
        return 0.5
    try:
        return (await judge.compared(task, pair, means)).value
    except GraderTrouble as error:
        return f"{error.trouble.kind}: {error.trouble.details}"

"""Groups in which all earned the same teach nothing, so that others are drawn in their place, up to a budget.

DAPO's dynamic sampling (Yu et al. 2025, arXiv 2503.14476, section 3.2): a step's batch is filled up with groups that
have answers of different worth. Further tasks of the run take the place of those that were too easy or too hard. Knows
no learner and no client.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from loreloop.learn.advantages import is_flat
from loreloop.learn.rollouts.collect import Collector, Pace, Played
from loreloop.learn.rollouts.values import Group

# Numbers of groups make their random numbers and names; those of a run's own groups stay below.
FIRST_NUMBER, OF_A_STEP = 1 << 30, 1 << 12


@dataclass(frozen=True)
class Batch:
    """The groups of a step: those that are `kept` to learn from, and those that others have taken the place of."""

    kept: list[Played]
    left_out: list[Played]

    @property
    def all(self) -> list[Played]:
        """Everything that was played: what is left out says as much of the policy as the rest."""
        return [*self.kept, *self.left_out]


@dataclass(frozen=True)
class Redrawing:
    """`most` groups may be drawn anew in one step. `tasks` are those of the run, out of which others are chosen by the
    seed and the step; without any, a task is asked again."""

    most: int = 0
    tasks: Sequence[Any] = ()
    seed: int = 0

    async def filled(
        self,
        played: Sequence[Played],
        step: int,
        play: Callable[[Any, int], Awaitable[Group]],
        pace: Pace,
        tokens_left: int | None = None,
    ) -> Batch:
        """The batch with as many groups of use as the budget gives. Groups without any use stay where it ends, or where
        `tokens_left` are spent by what was played."""
        kept, left_out = list(played), list[Played]()
        chance, n_drawn = random.Random(f"{self.seed} redrawing {step}"), 0
        while n_drawn < self.most and (flat := [one for one in kept if teaches_nothing(one.group)]):
            if not _has_left([*kept, *left_out], tokens_left):
                break
            # The youngest stay if the budget does not go round; which ones they are is of no matter.
            replaced = flat[: self.most - n_drawn]
            tasks = [self._other(one, chance) for one in replaced]
            first = FIRST_NUMBER + step * OF_A_STEP + n_drawn
            # By the weights that sample now: the batch's own groups may have begun some steps ago.
            collector = Collector(play=play, pace=replace(pace, staleness=0), revision=lambda: step)
            collector.add(step, tasks, first=first)
            try:
                drawn = await collector.take(step)
            finally:
                await collector.close()
            n_drawn += len(replaced)
            # One that has failed takes nobody's place: without any graded answer it would say even less.
            failed = [one for one in drawn if not one.group.graded]
            better = [one for one in drawn if one.group.graded]
            given_up = replaced[: len(better)]
            kept = [one for one in kept if not any(one is other for other in given_up)] + better
            left_out += [*given_up, *failed]
        return Batch(kept, left_out)

    def _other(self, one: Played, chance: random.Random) -> Any:
        return chance.choice(self.tasks) if self.tasks else one.group.task


def _has_left(played: Sequence[Played], tokens_left: int | None) -> bool:
    if tokens_left is None:
        return True
    return sum(rollout.n_sampled for one in played for rollout in one.group.rollouts) < tokens_left


def teaches_nothing(group: Group) -> bool:
    """Whether all graded answers earned the same. A group without any graded answer has failed, which is told by other
    means and would only fail again."""
    return bool(group.graded) and is_flat([rollout.reward for rollout in group.graded])

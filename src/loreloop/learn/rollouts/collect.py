"""Decides which tasks are played when, so that sampling goes on beside learning and no token is older than allowed.

The tasks of step n may begin once the revision is at least n − η, with η the `staleness`; and step n waits for every
group that would be too old for the step behind it. No token that is learned at step n was therefore drawn by weights
older than revision n − η. At η = 0, the default, sampling and learning take turns. (The first half of the rule is that
of AReaL, arXiv 2505.24298.) Where groups may overtake one another, tasks begin half as early. Knows no tokens and no
learner.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from loreloop.learn.rollouts.drawing import REFUSED
from loreloop.learn.rollouts.settled import raise_fatal, settled, trouble_of
from loreloop.learn.rollouts.values import Group

Asked = TypeVar("Asked")
Play = Callable[[Asked, int], Awaitable[Group]]


@dataclass(frozen=True)
class Pace:
    """`at_once` bounds how many groups are played together. A group of which no sample came back is played again,
    `tries` times in all. `overtaking` lets a step take whichever groups have ended first, in place of its own: long
    answers then hold up fewer steps, but which tasks a step learns from depends on the machine's speed."""

    staleness: int = 0
    at_once: int = 256
    tries: int = 2
    overtaking: bool = False

    def __post_init__(self) -> None:
        if min(self.tries, self.at_once) < 1 or self.staleness < 0:
            raise ValueError("at_once and tries are 1 or more, and staleness is 0 or more")

    @property
    def ahead(self) -> int:
        """By how many steps tasks begin early. What begins as early as it may is as old as it may be when its own step
        comes, which must wait for it. So where groups may overtake one another, the second half of the staleness is
        left for those that take long."""
        return -(-self.staleness // 2) if self.overtaking else self.staleness


@dataclass(frozen=True)
class Played:
    """The group of one task: its number, the step that the task was added for, and the revision at which it began."""

    number: int
    step: int
    began: int
    group: Group


@dataclass(frozen=True)
class _Waiting(Generic[Asked]):
    number: int
    step: int
    asked: Asked


@dataclass
class Collector(Generic[Asked]):
    """Plays tasks in the order in which they were added and hands out groups, step by step.

    `revision` tells which weights sample now: it is the number of steps learned. Every task ends in exactly one group,
    whatever becomes of it.
    """

    play: Play[Asked]
    pace: Pace
    revision: Callable[[], int]
    n_added: int = 0
    sizes: dict[int, int] = field(default_factory=dict)  # of the steps that have not been taken
    waiting: deque[_Waiting[Asked]] = field(default_factory=deque)
    running: dict[asyncio.Task[Group], Played] = field(default_factory=dict)
    finished: list[Played] = field(default_factory=list)

    def add(self, step: int, tasks: Sequence[Asked], first: int | None = None) -> None:
        """The tasks of a step; steps come in their order. They begin now as far as they may, and go on beside whatever
        is awaited. `first` numbers the first of them, where a run goes on from an earlier one."""
        self.n_added = self.n_added if first is None else first
        self.waiting += [_Waiting(self.n_added + place, step, asked) for place, asked in enumerate(tasks)]
        self.n_added += len(tasks)
        self.sizes[step] = len(tasks)
        self._begin()

    async def take(self, step: int) -> list[Played]:
        """The groups of a step, as many as it has tasks, in the order of their numbers. Cancelled, it loses nothing:
        the next call goes on."""
        self._begin()
        while self.running and self._waits(step):
            done, _ = await asyncio.wait(self.running, return_when=asyncio.FIRST_COMPLETED)
            self._end(done)
            self._begin()
        size = self.sizes.pop(step)
        # The oldest come first: they are those that the next step could not take any more.
        order = sorted(
            self.finished, key=lambda one: (one.began, one.number) if self.pace.overtaking else (one.number,)
        )
        taken, self.finished = order[:size], order[size:]
        return sorted(taken, key=lambda one: one.number)

    async def close(self) -> None:
        """Gives up what waits and what is being played."""
        self.waiting.clear()
        for task in self.running:
            task.cancel()
        if self.running:
            await asyncio.wait(self.running)
        self.running.clear()

    def _begin(self) -> None:
        newest = self.revision() + self.pace.ahead
        while self.waiting and self.waiting[0].step <= newest and len(self.running) < self.pace.at_once:
            next_up = self.waiting.popleft()
            # The revision is written down now: the weights may change while the group is being played.
            task = asyncio.ensure_future(self._played(next_up))
            self.running[task] = Played(next_up.number, next_up.step, self.revision(), Group(None, ()))

    def _waits(self, step: int) -> bool:
        """Whether the step needs a group that is still being played."""
        if not self.pace.overtaking:
            # In order, a step waits for its own groups and for those of earlier steps, which come before them by
            # number.
            steps = [*(one.step for one in self.running.values()), *(one.step for one in self.waiting)]
            return min(steps, default=step + 1) <= step
        size, oldest_first = self.sizes[step], sorted(self.finished, key=lambda one: one.began)
        if len(oldest_first) < size:
            return True
        left = [one.began for one in (*oldest_first[size:], *self.running.values())]
        # Groups that began by a revision must all find room in the steps before they are too old. A younger group that
        # takes an older one's room, since that is still being played, would leave it without any.
        return any(sum(began <= by for began in left) > self._room(step, by) for by in {*left})

    def _room(self, step: int, began: int) -> int:
        """How many groups the steps after this one take, up to the last that may learn from what began then."""
        return sum(size for later, size in self.sizes.items() if step < later <= began + self.pace.staleness)

    async def _played(self, one: _Waiting[Asked]) -> Group:
        """A group of at least one rollout, or after all tries one without any, which says why."""
        group = _NOBODY
        for _ in range(self.pace.tries):
            # A failed sample is mostly a server that was busy or restarting, so the same task is tried once more.
            played = await settled([self.play(one.asked, one.number)], REFUSED)
            group = played.results[0] if played.results else replace(_NOBODY, troubles=played.troubles)
            if group.rollouts:
                break
        return group

    def _end(self, done: set[asyncio.Task[Group]]) -> None:
        for task in done:
            raise_fatal(task, REFUSED)
            # Whoever cancels a group from outside takes that group away and not the step.
            trouble = trouble_of(task)
            group = task.result() if trouble is None else replace(_NOBODY, troubles=(trouble,))
            self.finished.append(replace(self.running.pop(task), group=group))


_NOBODY = Group(None, (), n_failed=1)

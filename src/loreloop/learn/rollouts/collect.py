"""Decides which tasks are played when, so that sampling goes on beside learning and no token is older than allowed.

With `staleness` η and B groups a step, the n-th group may begin once the revision is at least ⌊n/B⌋ − η; and a step
waits for every group that would be too old for the next one. No token that is learned at step i was therefore drawn by
weights older than revision i − η. At η = 0, the default, sampling and learning take turns. (The first half of the rule
is that of AReaL, arXiv 2505.24298.) Knows no tokens and no learner.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from loreloop.learn.rollouts.settled import settled, trouble_of
from loreloop.learn.rollouts.values import Group

Asked = TypeVar("Asked")
Play = Callable[[Asked, int], Awaitable[Group]]


@dataclass(frozen=True)
class Pace:
    """`groups` are learned from at each step; `at_once` bounds how many are played together. A group of which no sample
    came back is played again, `tries` times in all."""

    groups: int = 8
    staleness: int = 0
    at_once: int | None = None
    tries: int = 2

    def __post_init__(self) -> None:
        if min(self.groups, self.tries, 1 if self.at_once is None else self.at_once) < 1 or self.staleness < 0:
            raise ValueError("groups, at_once and tries are 1 or more, and staleness is 0 or more")


@dataclass(frozen=True)
class Played:
    """A group that has ended, by the number of its task, with the revision at which it began."""

    number: int
    began: int
    group: Group


@dataclass
class Collector(Generic[Asked]):
    """Plays tasks in their order and hands out groups, step by step.

    `revision` tells how many steps have been learned. Every task ends in exactly one group, whatever becomes of it.
    """

    tasks: Iterator[Asked]
    play: Play[Asked]
    pace: Pace
    revision: Callable[[], int]
    n_begun: int = 0
    n_steps: int = 0
    running: dict[asyncio.Task[Group], Played] = field(default_factory=dict)
    finished: list[Played] = field(default_factory=list)
    exhausted: bool = False

    async def batch(self) -> list[Played]:
        """The groups of the next step, in the order of their tasks; fewer than asked for at the end of the tasks, and
        then none. Cancelled, it loses nothing: the next call goes on."""
        self._begin()
        while self._waits():
            done, _ = await asyncio.wait(self.running, return_when=asyncio.FIRST_COMPLETED)
            self._end(done)
            self._begin()
        # The oldest come first: they are those that the next step could not take any more.
        self.finished.sort(key=lambda played: (played.began, played.number))
        taken, self.finished = self.finished[: self.pace.groups], self.finished[self.pace.groups :]
        self.n_steps += 1
        return sorted(taken, key=lambda played: played.number)

    def begin(self) -> None:
        """Begins what the newest revision allows, before a step asks for it; it goes on beside whatever is awaited."""
        self._begin()

    async def close(self) -> None:
        """Gives up what is being played."""
        for task in self.running:
            task.cancel()
        if self.running:
            await asyncio.wait(self.running)
        self.running.clear()

    def _begin(self) -> None:
        pace = self.pace
        most = (self.revision() + pace.staleness + 1) * pace.groups
        at_once = pace.groups * (pace.staleness + 1) if pace.at_once is None else pace.at_once
        while not self.exhausted and self.n_begun < most and len(self.running) < at_once:
            try:
                asked = next(self.tasks)
            except StopIteration:
                self.exhausted = True
                return
            number, self.n_begun = self.n_begun, self.n_begun + 1
            task = asyncio.ensure_future(self._played(asked, number))
            self.running[task] = Played(number, self.revision(), Group(None, ()))

    def _waits(self) -> bool:
        """Whether the step needs a group that is still being played."""
        oldest = self.n_steps - self.pace.staleness
        too_old_next = any(played.began <= oldest for played in self.running.values())
        return bool(self.running) and (too_old_next or len(self.finished) < self.pace.groups)

    async def _played(self, asked: Asked, number: int) -> Group:
        """A group of at least one rollout, or after all tries one without any, which says why."""
        group = Group(None, ())
        for _ in range(self.pace.tries):
            played = await settled([self.play(asked, number)])
            group = played.results[0] if played.results else replace(_NOBODY, troubles=played.troubles)
            if group.rollouts:
                break
        return group

    def _end(self, done: set[asyncio.Task[Group]]) -> None:
        for task in done:
            # Whoever cancels a group from outside takes that group away and not the step.
            trouble = trouble_of(task)
            group = task.result() if trouble is None else replace(_NOBODY, troubles=(trouble,))
            self.finished.append(replace(self.running.pop(task), group=group))


_NOBODY = Group(None, (), n_failed=1)

"""A loop of reinforcement learning, played by events: one engine learns, others draw, and revisions are handed over.

The tasks of step n begin once the revision is at least n − η, with η the staleness, and a step waits for its own tasks.
`overtaking`, they begin half as early, and a step waits for whichever ended first: the rules of
`learn/rollouts/collect.py`. Nothing is drawn by chance here: lengths are given, so that the same ones can be played on
any number of engines.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from loreloop.plan.drawing import Answer, Curve, Sampler


@dataclass(frozen=True)
class Engines:
    """What the loop runs on. `n_samplers` engines draw beside the one that learns; with none, that one draws as well.
    Each has `room` answers at once. `token_seconds` are those of one token of so many answers, `read_seconds` of one
    token of a prompt, `train_seconds` of a step over so many rows; a revision takes `handover_seconds` to the samplers,
    one after another."""

    n_samplers: int
    room: int
    token_seconds: Curve
    read_seconds: float
    train_seconds: Curve
    handover_seconds: float = 0.0


@dataclass(frozen=True)
class Course:
    """What is learned: steps of `batch` prompts with `group` answers, `n_steps` of them, the first `warm_up` not
    counted. Answers longer than `piece` are drawn in pieces, each by the newest revision."""

    batch: int
    group: int
    prompt: int
    n_steps: int
    warm_up: int = 0
    staleness: int = 0
    overtaking: bool = False
    piece: int | None = None

    @property
    def n_answers(self) -> int:
        """Of one step."""
        return self.batch * self.group

    @property
    def ahead(self) -> int:
        """By how many steps tasks begin early, as `Pace.ahead` says."""
        return -(-self.staleness // 2) if self.overtaking else self.staleness


@dataclass(frozen=True)
class Outcome:
    """What was seen behind the warm-up, and where all answers have gone. Idle shares are of the time; `staleness_mean`
    is over tokens, in steps."""

    seconds: float
    n_steps: int
    n_tokens: int
    trainer_idle: float
    sampler_idle: float
    staleness_mean: float
    staleness_most: int
    n_begun: int  # answers, of the whole play
    n_learned: int
    n_left: int  # that were drawn and not learned, are under way or wait

    @property
    def tokens_a_second(self) -> float:
        """Drawn tokens that were learned from."""
        return self.n_tokens / self.seconds

    @property
    def step_seconds(self) -> float:
        """Of one step, in the mean."""
        return self.seconds / self.n_steps


def played(engines: Engines, course: Course, lengths: Sequence[int]) -> Outcome:
    """The whole course. Answer number i is to have `lengths[i]` tokens, over and over if there are fewer."""
    return _Play(engines, course, lengths).run()


@dataclass
class _Group:
    """The answers to one prompt. `began` is the revision that was the newest when they were asked for."""

    number: int
    began: int
    n_open: int
    answers: list[Answer] = field(default_factory=list)
    samplers: set[int] = field(default_factory=set)


@dataclass
class _Seen:
    """What is added up over the steps that count."""

    since: float = 0.0
    busy_before: float = 0.0
    trained: float = 0.0
    n_tokens: int = 0
    ages: Counter[int] = field(default_factory=Counter)  # tokens by their staleness


class _Event(NamedTuple):
    at: float
    number: int  # no two have the same; of those at the same time, what was said first comes first
    does: Callable[[], None]


class _Play:
    def __init__(self, engines: Engines, course: Course, lengths: Sequence[int]) -> None:
        self.engines, self.course, self.lengths = engines, course, lengths
        self.samplers = [
            Sampler(engines.room, course.prompt, engines.token_seconds, engines.read_seconds)
            for _ in range(max(1, engines.n_samplers))
        ]
        self.now, self.revision, self.n_steps = 0.0, 0, 0  # the samplers' revision, and steps learned
        self.learns = self.sending = False
        self.events: list[_Event] = []
        self.n_events = self.n_groups = self.n_learned = 0
        self.running: dict[int, _Group] = {}
        self.finished: dict[int, _Group] = {}
        self.seen = _Seen()

    def run(self) -> Outcome:
        self._begin()
        while self.n_steps < self.course.n_steps:
            event = heapq.heappop(self.events)
            self.now = event.at
            event.does()
        return self._outcome()

    def _at(self, at: float, does: Callable[[], None]) -> None:
        self.n_events += 1
        heapq.heappush(self.events, _Event(at, self.n_events, does))

    def _begin(self) -> None:
        """Asks for all answers whose step may begin. An even share for each sampler keeps as many of a group together
        as can be, since they share their prompt."""
        course = self.course
        last = (self.revision + course.ahead + 1) * course.batch
        together = min(course.group, max(1, course.n_answers // len(self.samplers)))
        loads = [(sampler.n_in_hand, number) for number, sampler in enumerate(self.samplers)]
        heapq.heapify(loads)
        touched: set[int] = set()
        while self.n_groups < last:
            group = _Group(self.n_groups, self.revision, course.group)
            self.running[group.number] = group
            for first in range(0, course.group, together):
                load, at = loads[0]
                n = min(together, course.group - first)
                heapq.heapreplace(loads, (load + n, at))
                self._ask(group, at, range(first, first + n))
                touched.add(at)
            self.n_groups += 1
        for at in sorted(touched):
            self._await(at)

    def _ask(self, group: _Group, at: int, places: range) -> None:
        sampler = self.samplers[at]
        sampler.advance(self.now)
        group.samplers.add(at)
        for place in places:
            length = self.lengths[(group.number * self.course.group + place) % len(self.lengths)]
            answer = Answer(group.number, length)
            group.answers.append(answer)
            sampler.take(answer, self._piece(answer))

    def _piece(self, answer: Answer) -> int:
        return min(answer.left, self.course.piece or answer.left)

    def _await(self, at: int) -> None:
        """What was said of the sampler's next end is replaced."""
        sampler = self.samplers[at]
        sampler.version += 1
        end = sampler.next_end()
        if end is not None:
            self._at(end, partial(self._drawn, at, sampler.version))

    def _drawn(self, at: int, version: int) -> None:
        sampler = self.samplers[at]
        if sampler.version != version:
            return  # something came between
        sampler.advance(self.now)
        has_group = False
        for answer in sampler.ended():
            if answer.left:
                sampler.take(answer, self._piece(answer), first=True)
                continue
            group = self.running[answer.prompt]
            group.n_open -= 1
            if not group.n_open:
                has_group = True
                self.finished[group.number] = self.running.pop(group.number)
                for one in group.samplers:
                    self.samplers[one].forget(group.number)
        sampler.refill()
        self._await(at)
        if has_group:
            self._learn()

    def _learn(self) -> None:
        """Begins the next step if the trainer is free and its groups are there."""
        taken = [] if self.learns else self._taken()
        if not taken:
            return
        self.learns = True
        n_tokens = sum(answer.n_drawn for group in taken for answer in group.answers)
        seconds = self.engines.train_seconds(self.course.batch * self.course.prompt + n_tokens)
        self.n_learned += len(taken) * self.course.group
        if self.n_steps >= self.course.warm_up:
            self.seen.trained += seconds
            self.seen.n_tokens += n_tokens
            for group in taken:
                for one in (one for answer in group.answers for one in answer.drawn):
                    self.seen.ages[self.n_steps - one.revision] += one.n_tokens
        if not self.engines.n_samplers:
            self.samplers[0].advance(self.now)
            self.samplers[0].give_to_trainer(seconds)
            self._await(0)
        self._at(self.now + seconds, self._learned)

    def _taken(self) -> list[_Group]:
        """The groups of the next step, or none while it must wait."""
        size, step = self.course.batch, self.n_steps
        if len(self.finished) < size:
            return []
        if not self.course.overtaking:
            own = range(step * size, (step + 1) * size)
            return [self.finished.pop(number) for number in own] if all(n in self.finished for n in own) else []
        oldest_first = sorted(self.finished.values(), key=lambda group: (group.began, group.number))
        left = Counter(group.began for group in (*oldest_first[size:], *self.running.values()))
        # What is left over must find room in the steps before it is too old.
        n_left = 0
        for began in sorted(left):
            n_left += left[began]
            if n_left > size * max(0, began + self.course.staleness - step):
                return []
        return [self.finished.pop(group.number) for group in oldest_first[:size]]

    def _learned(self) -> None:
        self.learns = False
        self.n_steps += 1
        if self.n_steps == self.course.warm_up:
            self.seen = _Seen(self.now, self._busy())
        self._hand_over()
        if self.n_steps < self.course.n_steps:
            self._learn()

    def _hand_over(self) -> None:
        """Sends the newest revision, once the one before has arrived: all go through the same links, and one that was
        overtaken while it waited is of no use to anybody."""
        if self.sending or self.revision == self.n_steps:
            return
        self.sending = True
        self._at(self.now + self.engines.handover_seconds, partial(self._handed_over, self.n_steps))

    def _handed_over(self, revision: int) -> None:
        self.sending, self.revision = False, revision
        for sampler in self.samplers:
            sampler.revision = revision
        self._hand_over()
        self._begin()
        self._learn()

    def _busy(self) -> float:
        for sampler in self.samplers:
            sampler.advance(self.now)
        return sum(sampler.busy for sampler in self.samplers)

    def _outcome(self) -> Outcome:
        seen, seconds = self.seen, self.now - self.seen.since
        n_ended = sum(answer.left == 0 for group in self.running.values() for answer in group.answers)
        n_waiting = sum(len(group.answers) for group in self.finished.values())
        n_tokens = sum(seen.ages.values())
        return Outcome(
            seconds=seconds,
            n_steps=self.course.n_steps - self.course.warm_up,
            n_tokens=seen.n_tokens,
            trainer_idle=1 - seen.trained / seconds,
            sampler_idle=1 - (self._busy() - seen.busy_before) / (seconds * len(self.samplers)),
            staleness_mean=sum(age * n for age, n in seen.ages.items()) / n_tokens,
            staleness_most=max(seen.ages),
            n_begun=self.n_groups * self.course.group,
            n_learned=self.n_learned,
            n_left=n_ended + n_waiting + sum(sampler.n_in_hand for sampler in self.samplers),
        )

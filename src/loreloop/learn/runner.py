"""The one loop of all learners: batches by a seed, saved states, checkpoints, evaluation, and an end when asked for.

It keeps nothing itself: where the run stands is handed to a `Progress`, and what was measured to `tell`. Knows no
learner in particular.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar

import msgspec

from loreloop.learn.breakdowns import LossDiverged
from loreloop.learn.clients import Clients
from loreloop.learn.plan import Moment, Plan
from loreloop.protocol.errors import BadRequest

Metrics = dict[str, float]
Wish = Literal["go", "pause", "finish", "cancel"]
Ending = Literal["finished", "paused", "cancelled"]
E = TypeVar("E")
In = TypeVar("In", contravariant=True)

TOKENS = "tokens"  # the metric that becomes a field of the record
IN_FLIGHT = 2  # steps that are handed in and not waited for: the server is never without work


class StepRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What one step has measured. `step` and `epoch` count from 1; `seconds` are those since the step before ended.

    Metrics of what was learned from begin with `train_`, those of held-out examples with `valid_`.
    """

    step: int
    epoch: int
    learning_rate: float
    metrics: Metrics
    tokens: int
    seconds: float


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Weights that can be sampled from, as they were after so many steps, and the metrics of the last of these."""

    step: int
    epoch: int
    path: str
    metrics: Metrics


class Position(msgspec.Struct, frozen=True, kw_only=True):
    """Where a run stands: steps done when `states` were saved, by clients' names; `learner` is what else it needs."""

    step: int = 0
    states: dict[str, str] = {}
    learner: dict[str, Any] = {}
    checkpoints: tuple[Checkpoint, ...] = ()
    finished: bool = False


class Progress(Protocol):
    """Keeps a run's position outside of it: a file, or a row. What was saved must last when `save` returns."""

    async def load(self) -> Position | None:
        """The last position that was saved, or None for a run that has not begun."""
        ...

    async def save(self, position: Position) -> None:
        """Keeps a position in the place of the one before."""
        ...


class Learner(Protocol[In]):
    """What a run asks of a way to learn. `step` must have handed in all that changes weights when it returns, so that
    whatever is saved next holds it; what it gives is awaited for the step's metrics, perhaps after the next step."""

    ahead: int  # how many steps before its own a batch is prepared

    def prepare(self, batch: Sequence[In], at: Moment) -> None:
        """Told of a batch `ahead` steps before it comes, so that what takes long can begin; once for every batch."""
        ...

    async def step(self, batch: Sequence[In], at: Moment) -> Awaitable[Metrics]:
        """Hands in one step."""
        ...

    async def evaluate(self, examples: Sequence[In]) -> Metrics:
        """What held-out examples say of the weights as they are; names begin with `valid_`."""
        ...

    def state(self) -> dict[str, Any]:
        """What beside the clients' states a resumption needs, as JSON can hold it."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Takes back what `state` gave; an empty one for a run that begins."""
        ...


@dataclass(frozen=True)
class _Pending:
    at: Moment
    metrics: asyncio.Future[Metrics]


def _ignore(record: StepRecord) -> None:
    """What becomes of records that nobody wants."""


async def _look_away(at: Moment) -> None:
    """What is done behind a saved state where nobody looks at it."""


@dataclass
class Run(Generic[E]):
    """One run of a learner over examples. `wish` is asked before every step; `look` is awaited behind every saved
    state, before the next step."""

    plan: Plan
    clients: Clients
    learner: Learner[E]
    progress: Progress
    tell: Callable[[StepRecord], None] = _ignore
    wish: Callable[[], Wish] = lambda: "go"
    look: Callable[[Moment], Awaitable[None]] = _look_away

    async def over(self, examples: Sequence[E], held_out: Sequence[E] = ()) -> Ending:
        """Runs from where the run stands to its end, or until it is wished otherwise. A pause saves its state first; to
        finish means to end here as if all steps were made; a cancelled run keeps what was saved before. BadRequest
        without examples."""
        if not examples:
            raise BadRequest("There is nothing to learn from: the file holds no examples.")
        self.examples, self.held_out = examples, held_out
        self.position = await self.progress.load() or Position()
        if self.position.finished:
            return "finished"
        self.learner.restore(self.position.learner)
        self.pending: deque[_Pending] = deque()
        self.ended, self.last = time.perf_counter(), Metrics()
        try:
            return await self._rest(self.plan.n_steps(len(examples)))
        finally:
            # Only a failure leaves any behind it, and then nobody waits for them.
            for one in self.pending:
                one.metrics.cancel()

    async def _rest(self, n_steps: int) -> Ending:
        for step in range(self.position.step, min(self.position.step + self.learner.ahead, n_steps)):
            self._prepare(step)
        for step in range(self.position.step, n_steps):
            if (wish := self.wish()) != "go":
                return await self._stop(step, wish)
            if step + self.learner.ahead < n_steps:
                self._prepare(step + self.learner.ahead)
            await self._step(self.plan.moment(step, len(self.examples)))
        await self._settle()
        return "finished"

    async def _stop(self, step: int, wish: Wish) -> Ending:
        await self._settle()
        if wish == "cancel":
            return "cancelled"
        if wish == "finish" and step:
            await self._finish_early(self.plan.moment(step - 1, len(self.examples)))
            return "finished"
        if step > self.position.step:
            await self._save(self.plan.moment(step - 1, len(self.examples)))
        return "paused"

    async def _finish_early(self, at: Moment) -> None:
        """The step that was made last becomes the run's last one, with weights to sample from."""
        done, position = at.step + 1, self.position
        if done > position.step:
            await self._save(msgspec.structs.replace(at, n_steps=done, ends_epoch=True))
            return
        # The state is saved already. The weights get a name of their own: an epoch that ends here has its checkpoint,
        # and whoever deletes that means not this one.
        path = await self.clients.publish(f"{self.plan.name}-end")
        end = Checkpoint(step=done, epoch=at.epoch + 1, path=path, metrics=self.last)
        self.position = msgspec.structs.replace(position, checkpoints=(*position.checkpoints, end), finished=True)
        await self.progress.save(self.position)

    def _prepare(self, step: int) -> None:
        self.learner.prepare(self.plan.batch(step, self.examples), self.plan.moment(step, len(self.examples)))

    async def _step(self, at: Moment) -> None:
        handed_in = await self.learner.step(self.plan.batch(at.step, self.examples), at)
        self.pending.append(_Pending(at, asyncio.ensure_future(handed_in)))
        while len(self.pending) >= IN_FLIGHT:
            await self._finish(self.pending.popleft())
        # The state must be that behind this step, so the next one is not handed in before it is saved.
        if at.ends_epoch or (at.step + 1) % self.plan.save_every == 0:
            await self._settle()
            await self._save(at)
            await self.look(at)
        elif self._evaluates(at):
            await self._settle()

    async def _settle(self) -> None:
        while self.pending:
            await self._finish(self.pending.popleft())

    async def _finish(self, one: _Pending) -> None:
        """Waits for a step, and tells what it has measured."""
        metrics = dict(await one.metrics)
        # A run that is to finish behind this step ends as any other does: with a look at what is held out.
        is_last = bool(self.held_out) and not self.pending and self.wish() == "finish"
        if is_last or self._evaluates(one.at):
            metrics |= await self.learner.evaluate(self.held_out)
        now = time.perf_counter()
        seconds, self.ended, tokens = now - self.ended, now, int(metrics.pop(TOKENS, 0))
        at = one.at
        for name, value in metrics.items():
            # Nothing that is learned from such a step on is worth anything, and the states saved before it are whole.
            if name.endswith("_loss") and not math.isfinite(value):
                raise LossDiverged(
                    f"Step {at.step + 1}: {name} is {value}; the learning rate of {at.learning_rate:g} is too large, "
                    "or an example is broken. What was saved before is whole."
                )
        # A measure that has no value here, such as the mean of nothing, is left out.
        self.last = metrics = {name: value for name, value in metrics.items() if math.isfinite(value)}
        self.tell(
            StepRecord(
                step=at.step + 1,
                epoch=at.epoch + 1,
                learning_rate=at.learning_rate,
                metrics=metrics,
                tokens=tokens,
                seconds=seconds,
            )
        )

    def _evaluates(self, at: Moment) -> bool:
        every = self.plan.eval_every
        return bool(self.held_out) and (at.ends_epoch or (every > 0 and (at.step + 1) % every == 0))

    async def _save(self, at: Moment) -> None:
        """Saves all states, and weights for sampling where an epoch ends; only then the position moves."""
        done, before = at.step + 1, self.position
        saving = self.clients.save(f"{self.plan.name}-state-{done:06d}")
        checkpoints = before.checkpoints
        if at.ends_epoch:
            # Neither waits for the other: nothing that changes weights comes in between.
            states, path = await asyncio.gather(saving, self.clients.publish(f"{self.plan.name}-step-{done:06d}"))
            checkpoints += (Checkpoint(step=done, epoch=at.epoch + 1, path=path, metrics=self.last),)
        else:
            states = await saving
        self.position = Position(
            step=done,
            states=states,
            learner=self.learner.state(),
            checkpoints=checkpoints,
            finished=done == at.n_steps,
        )
        await self.progress.save(self.position)
        # Only now nothing needs the states before these.
        await self.clients.forget(before.states)

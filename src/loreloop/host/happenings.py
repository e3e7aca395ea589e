"""What happened on a server lately, in memory: requests, passes with their losses, steps, samples, engines, jobs.

For people who watch, and for nobody else: the oldest go when there are many, and a new process begins with none. Knows
no routes. Prompts, answers and secrets are never in it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import msgspec

from loreloop.host.tickets import Ticket
from loreloop.protocol.link import BatchDone, OpEnd
from loreloop.protocol.paths import owner_of
from loreloop.protocol.sampling import SampleResult
from loreloop.protocol.token_ids import n_ids
from loreloop.protocol.training import Failure, PassResult, SavedResult, StepResult, length_of

MOST = 4096  # that are kept
MOST_LETTERS = 300  # of a text
MOST_METRICS = 4  # of a step, in its line

Kind = Literal["request", "pass", "step", "save", "operation", "sample", "failure", "engine", "job"]


class Happening(msgspec.Struct, frozen=True):
    """`at` is in seconds since the epoch; `of` is what it happened to: a run, a sampler, a model, a job, a route."""

    number: int
    at: float
    kind: Kind
    of: str
    text: str
    figures: dict[str, float] = {}


class Lately(NamedTuple):
    """What a watcher has not seen; `last` is the number to go on from, `missed` whether something has gone before."""

    happenings: list[Happening]
    last: int
    missed: bool


@dataclass
class Happenings:
    """One per HTTP process; lives on its event loop. Numbers begin at the clock, so that those of a later process are
    larger, and whoever watches goes on over a restart."""

    last: int = field(default_factory=lambda: time.time_ns() // 1000)
    kept: deque[Happening] = field(default_factory=lambda: deque(maxlen=MOST))
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def note(self, kind: Kind, of: str, text: str, **figures: float) -> None:
        """Adds one, and wakes those who watch."""
        self.last += 1
        self.kept.append(
            Happening(number=self.last, at=time.time(), kind=kind, of=of, text=text[:MOST_LETTERS], figures=figures)
        )
        self.changed.set()
        self.changed = asyncio.Event()

    def batch_ended(self, done: BatchDone) -> None:
        """Notes the operations of a batch; those of a replay happened before."""
        for end in () if done.replayed else done.ends:
            self._operation_ended(end)

    def sample_ended(self, ticket: Ticket, result: SampleResult | Failure) -> None:
        """Notes a sample with its tokens and the seconds that it took."""
        seconds, n_prompt = time.time() - ticket.created, length_of(ticket.op.prompt)
        revision = ticket.op.revision.revision_id if ticket.op.revision else ticket.base_model
        of, by = revision, ticket.op.request_id
        if isinstance(result, Failure):
            self.note("failure", of, f"sample {by}: {result.message}", seconds=seconds)
            return
        n_drawn = sum(n_ids(sequence.tokens) for sequence in result.sequences)
        text = f"{n_prompt} + {n_drawn} tokens in {seconds:.2f} s, {by}"
        self.note("sample", of, text, prompt_tokens=n_prompt, generated_tokens=n_drawn, seconds=seconds)

    def after(self, number: int, of: str = "") -> Lately:
        """All behind a number that have `of` in what they happened to, or in their text."""
        if number > self.last:
            number = 0  # of before the clock was put back
        found = [each for each in self.kept if each.number > number and (of in each.of or of in each.text)]
        missed = bool(self.kept) and number != 0 and self.kept[0].number > number + 1 and len(self.kept) == MOST
        return Lately(found, self.last, missed)

    def newest(self, n: int, of: str = "") -> Lately:
        """The last ones, for whoever begins to watch."""
        found = self.after(0, of).happenings
        return Lately(found[-n:] if n else [], self.last, False)

    async def wait(self, number: int, seconds: float) -> None:
        """Until something is behind the number, or the time is over."""
        changed = self.changed
        if self.last > number:
            return
        try:
            async with asyncio.timeout(seconds):
                await changed.wait()
        except TimeoutError:
            pass

    def _operation_ended(self, end: OpEnd) -> None:
        run, result = owner_of(end.request_id), end.result
        place = f"seq {end.request_id.rpartition(':')[2]}"
        match result:
            case Failure():
                self.note("failure", run, f"{place}: {result.message}")
            case PassResult():
                n, loss = end.n_trained_tokens, result.metrics.get("loss:sum", 0.0)
                each = f" ({loss / n:.4f} each)" if n else ""
                over = f" over {n} tokens{each}" if n else ""
                self.note("pass", run, f"{place}: loss {loss:.4f}{over}", loss_sum=loss, trained_tokens=n)
            case StepResult():
                shown = list(result.metrics.items())[:MOST_METRICS]
                self.note("step", run, f"{place}: " + ", ".join(f"{name} {value:.4g}" for name, value in shown))
            case SavedResult():
                self.note("save", run, place)
            case _:
                self.note("operation", run, place)

"""What has passed the dispatcher of one engine since this process began.

Counts only; who asks for them is not known here.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import dataclass, field
from itertools import pairwise

from loreloop.protocol.link import BatchDone
from loreloop.protocol.sampling import SampleOp, SampleResult
from loreloop.protocol.token_ids import n_ids
from loreloop.protocol.training import Failure, length_of

KEPT_ENDS = 64
IDLE_SECONDS = 30.0  # longer without an end means that there was nothing to do


@dataclass
class Pace:
    """When the last of many like things ended, by which the next ones' time is guessed."""

    ends: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT_ENDS))

    def ended(self, now: float) -> None:
        """Notes an end, in seconds of a clock that only goes on."""
        self.ends.append(now)

    def seconds_each(self, now: float) -> float | None:
        """How long one takes while there are others; None where too few have ended."""
        if len(self.ends) < 2:
            return None
        gaps = [min(later - earlier, IDLE_SECONDS) for earlier, later in pairwise((*self.ends, now))]
        return sum(gaps) / len(gaps)


@dataclass
class Counts:
    """`samples` and `operations` by how they ended: done, or whose failure it was."""

    samples: Counter[str] = field(default_factory=Counter)
    operations: Counter[str] = field(default_factory=Counter)
    n_prompt_tokens: int = 0
    n_cached_tokens: int = 0
    n_drawn_tokens: int = 0
    n_deaths: int = 0
    sample_pace: Pace = field(default_factory=Pace)
    operation_pace: Pace = field(default_factory=Pace)

    def sample_ended(self, op: SampleOp, result: SampleResult | Failure) -> None:
        """Counts an ended sample, and its tokens if it has succeeded."""
        self.samples[_outcome(result)] += 1
        self.sample_pace.ended(time.monotonic())
        if isinstance(result, SampleResult):
            self.n_prompt_tokens += length_of(op.prompt)
            self.n_cached_tokens += result.cache_hit_tokens
            self.n_drawn_tokens += sum(n_ids(sequence.tokens) for sequence in result.sequences)

    def batch_ended(self, done: BatchDone) -> None:
        """Counts the operations of a batch; those of a replay were counted when they ran first."""
        if not done.replayed:
            self.operations.update(_outcome(end.result) for end in done.ends)
            for _ in done.ends:
                self.operation_pace.ended(time.monotonic())


def _outcome(result: object) -> str:
    return f"{result.category}_failure" if isinstance(result, Failure) else "done"

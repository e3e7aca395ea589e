"""What has passed the dispatcher of one engine since this process began.

Counts only; who asks for them is not known here.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from loreloop.protocol.link import BatchDone
from loreloop.protocol.sampling import SampleOp, SampleResult
from loreloop.protocol.token_ids import n_ids
from loreloop.protocol.training import Failure, length_of


@dataclass
class Counts:
    """`samples` and `operations` by how they ended: done, or whose failure it was."""

    samples: Counter[str] = field(default_factory=Counter)
    operations: Counter[str] = field(default_factory=Counter)
    n_prompt_tokens: int = 0
    n_cached_tokens: int = 0
    n_drawn_tokens: int = 0
    n_deaths: int = 0

    def sample_ended(self, op: SampleOp, result: SampleResult | Failure) -> None:
        """Counts an ended sample, and its tokens if it has succeeded."""
        self.samples[_outcome(result)] += 1
        if isinstance(result, SampleResult):
            self.n_prompt_tokens += length_of(op.prompt)
            self.n_cached_tokens += result.cache_hit_tokens
            self.n_drawn_tokens += sum(n_ids(sequence.tokens) for sequence in result.sequences)

    def batch_ended(self, done: BatchDone) -> None:
        """Counts the operations of a batch; those of a replay were counted when they ran first."""
        if not done.replayed:
            self.operations.update(_outcome(end.result) for end in done.ends)


def _outcome(result: object) -> str:
    return f"{result.category}_failure" if isinstance(result, Failure) else "done"

"""Which chunks of the memory are opened for an edit. Each chunk's decision is its own: it depends on its own worth and
sizes, on one threshold for all, and on a seed, never on its neighbours.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

LOSS_OF_CONDENSING = 0.02  # share of a chunk's worth that is lost with its function words


@dataclass(frozen=True)
class Chunk:
    """A segment as the mask sees it: its number, worth, tokens now, and tokens when condensed (equal if it is)."""

    id: int
    worth: float
    tokens: int
    condensed: int


@dataclass(frozen=True)
class Steps:
    """What is lost per token that is freed, when a chunk is condensed and when what is left of it goes. A chunk gives
    up its function words before its content, so the first never exceeds the second."""

    condense: float
    drop: float


def steps_of(chunk: Chunk, seed: int, temperature: float) -> Steps:
    """With a temperature the chunk's worth is scaled by exp(temperature · g), g normal and drawn from (seed, id): then
    different seeds make different memories, as learning from rewards needs them."""
    worth = chunk.worth * math.exp(temperature * normal(seed, chunk.id)) if temperature else chunk.worth
    # What is dropped after condensing frees only the condensed tokens, and loses all of the worth with them.
    drop = worth / max(chunk.condensed, 1)
    freed = chunk.tokens - chunk.condensed
    # A chunk that is no shorter when condensed has one step alone.
    condense = min(drop, LOSS_OF_CONDENSING * worth / freed) if freed > 0 else drop
    return Steps(condense, drop)


def normal(seed: int, number: int) -> float:
    """A standard normal number that (seed, number) determines (Box and Muller, 1958)."""
    # A hash rather than a generator: the draw of a chunk does not depend on how many others were drawn before.
    digest = hashlib.blake2b(f"{seed}:{number}".encode(), digest_size=16).digest()
    # Never 0, since its logarithm is taken.
    first = (int.from_bytes(digest[:8]) + 1) / (2**64 + 1)
    second = int.from_bytes(digest[8:]) / 2**64
    return math.sqrt(-2 * math.log(first)) * math.cos(2 * math.pi * second)


def threshold_for(steps: Sequence[Steps], chunks: Sequence[Chunk], to_free: int) -> float:
    """The lowest threshold at which the steps below or at it free `to_free` tokens; infinite if all do not."""
    ladder: list[tuple[float, int]] = []
    for step, chunk in zip(steps, chunks, strict=True):
        if chunk.tokens > chunk.condensed:
            ladder.append((step.condense, chunk.tokens - chunk.condensed))
        # Each chunk adds both of its steps; taken together they free all of its tokens.
        ladder.append((step.drop, chunk.condensed))
    freed = 0
    for loss, tokens in sorted(ladder):
        freed += tokens
        if freed >= to_free:
            return loss
    return math.inf


def masked(steps: Sequence[Steps], threshold: float) -> list[bool]:
    """For every chunk, whether it is opened."""
    return [step.condense <= threshold for step in steps]

"""Answers that were tried, and what each is worth beside the others that were given from the same state.

Rewards of different states are never compared: a memory that has lost a fact already answers worse whatever is written
next, and a shared baseline would blame the writer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

import msgspec


class SampledAnswer(msgspec.Struct, frozen=True):
    """A sampled answer: `tokens` and their log-probabilities when sampled; `ended` where it was not cut off."""

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    ended: bool = True


class Tried(msgspec.Struct, frozen=True):
    """An answer with its advantage, ready for a policy gradient."""

    prompt: str
    answer: SampledAnswer
    advantage: float


def advantages(rewards: Sequence[float]) -> list[float]:
    """Of one group: each reward less the group's mean. They sum to zero."""
    # Not divided by the spread: where all answers are nearly alike, noise would weigh as much as a real difference.
    middle = fmean(rewards)
    return [reward - middle for reward in rewards]


def merged(tried: Sequence[Tried], least: float = 1e-6) -> list[Tried]:
    """Equal answers to equal prompts as one, with the sum of their advantages: the gradient is the same since the loss
    is linear in the advantage. Those whose sum is nothing are left out."""
    sums: defaultdict[tuple[str, SampledAnswer], float] = defaultdict(float)
    for one in tried:
        sums[one.prompt, one.answer] += one.advantage
    return [Tried(prompt, answer, total) for (prompt, answer), total in sums.items() if abs(total) > least]

"""Questions about sums and products, split by operand pair so that held-out pairs are never trained on.

A pair and its mirror image stay on the same side of the split. Knows no model.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """A sum or a product of two numbers."""

    left: int
    right: int
    sign: str  # "+" or "×"

    @property
    def text(self) -> str:
        """The question in words."""
        return f"What is {self.left} {self.sign} {self.right}?"

    @property
    def answer(self) -> str:
        """The right number, in digits."""
        return str(self.left + self.right if self.sign == "+" else self.left * self.right)

    def is_answered_by(self, reply: str) -> bool:
        """Whether the last number of the reply is the answer; "3 + 4 = 7" will do."""
        numbers = re.findall(r"\d+", reply)
        return bool(numbers) and numbers[-1] == self.answer


@dataclass(frozen=True)
class Split:
    """Questions to train on, and questions that are never trained on."""

    train: tuple[Question, ...]
    held_out: tuple[Question, ...]


def one_digit(seed: int, held_out_share: float = 0.3) -> Split:
    """Sums and products of 0…9."""
    return _split(range(10), "+×", seed, held_out_share)


def two_digit(seed: int, held_out_share: float = 0.1) -> Split:
    """Sums of 10…99."""
    return _split(range(10, 100), "+", seed, held_out_share)


def _split(operands: range, signs: str, seed: int, held_out_share: float) -> Split:
    # Only ordered pairs are split, so that a pair and its mirror image cannot land on different sides.
    pairs = [(a, b) for a in operands for b in operands if a <= b]
    rng = random.Random(seed)
    rng.shuffle(pairs)
    n_held_out = round(len(pairs) * held_out_share)
    return Split(_both_ways(pairs[n_held_out:], signs), _both_ways(pairs[:n_held_out], signs))


def _both_ways(pairs: list[tuple[int, int]], signs: str) -> tuple[Question, ...]:
    """In the order of the pairs, which is random: any first part is a fair sample."""
    both = dict.fromkeys(pair for a, b in pairs for pair in ((a, b), (b, a)))
    return tuple(Question(a, b, sign) for a, b in both for sign in signs)

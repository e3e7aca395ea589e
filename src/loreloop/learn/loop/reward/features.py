"""An answer to a prompt as numbers, without a model: hashed pieces of text, prompt × answer, and the answer's form.

Hashing (Weinberger et al. 2009, arXiv 0902.2206) gives each piece of text a place among 2^bits by its hash and a sign
by another bit of it, so that there is no vocabulary to keep and pieces that share a place cancel in the mean. Each
group of pieces has a norm of 1 at most, so that a long answer is not a large one; what length itself is worth is told
by the numbers of the form. Knows no labels and no weights.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from loreloop.learn.loop.reward.events import Scored, text_of
from loreloop.learn.loop.reward.form import FORM_NAMES, form_of, length_band

Floats = NDArray[np.float64]
Places = NDArray[np.int64]

MOST_CHARACTERS, MOST_WORDS = 4000, 600  # of an answer; the rest of a longer one is told by its form alone
EDGE = 3  # words at the beginning and at the end that are told apart by their place
TOPIC_WORDS = 12  # of the prompt, for what goes together with the answer
WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Row:
    """Numbers of an answer, or the difference of two: `form` is dense, and `values` stand at `places` of the hashed
    part, all of them different."""

    form: Floats
    places: Places
    values: Floats

    def minus(self, other: Row) -> Row:
        """The difference; what both have alike is gone."""
        return self._plus(other, -1.0)

    def plus(self, other: Row) -> Row:
        """The sum."""
        return self._plus(other, 1.0)

    def _plus(self, other: Row, sign: float) -> Row:
        places, where = np.unique(np.concatenate([self.places, other.places]), return_inverse=True)
        values = np.bincount(where, np.concatenate([self.values, sign * other.values]), len(places))
        kept = values != 0
        return Row(self.form + sign * other.form, places[kept], values[kept])


@dataclass(frozen=True)
class Features:
    """Which numbers are made. `bits`: 2^bits places; `seed` moves every piece to another place; `form` False leaves the
    form away, and `words` False whatever is hashed, for a second opinion by other means."""

    bits: int = 16
    seed: int = 0
    form: bool = True
    words: bool = True

    @property
    def n_form(self) -> int:
        """How many dense numbers there are."""
        return len(FORM_NAMES)

    def row(self, item: Scored) -> Row:
        """The numbers of one answer, at a cost that is bounded whatever its length."""
        prompt = next((text_of(one) for one in reversed(item.messages) if one.get("role") == "user"), "")
        form = form_of(prompt, item.answer) if self.form else np.zeros(self.n_form)
        if not self.words:
            return Row(form, np.zeros(0, np.int64), np.zeros(0))
        return self._hashed(form, groups_of(prompt, item.answer))

    def _hashed(self, form: Floats, groups: Sequence[Counter[str]]) -> Row:
        codes: list[int] = []
        sizes: list[Floats] = []
        for number, group in enumerate(groups):
            start = self.seed * 31 + number
            codes += [crc32(piece.encode("utf-8", "replace"), start) for piece in group]
            # A piece that stands there ten times does not say ten times as much.
            counts = np.sqrt(np.fromiter(group.values(), np.float64, len(group)))
            sizes.append(counts / (float(np.sqrt(counts @ counts)) or 1.0))
        code = np.array(codes, np.int64)
        values = np.concatenate(sizes) * np.where(code >> 31, 1.0, -1.0)
        places, where = np.unique(code & ((1 << self.bits) - 1), return_inverse=True)
        return Row(form, places, np.bincount(where, values, len(places)).astype(np.float64))


def groups_of(prompt: str, answer: str) -> list[Counter[str]]:
    """The pieces that are hashed: words and pairs of words, runs of characters, the edges, and prompt × answer."""
    answer = answer[:MOST_CHARACTERS]
    words = [word.lower() for word in WORD.findall(answer)[:MOST_WORDS]]
    pairs = [f"{one} {other}" for one, other in pairwise(words)]
    marked = f"^{' '.join(words)[:MOST_CHARACTERS]}$"
    runs = [marked[place : place + 4] for place in range(max(0, len(marked) - 3))]
    return [Counter(words), Counter(pairs), Counter(runs), Counter(_edges(answer)), Counter(_crossed(prompt, answer))]


def _edges(answer: str) -> Iterator[str]:
    """How an answer and its last line begin, and how it ends; numbers are told as such, not by their value."""
    lines = [line for line in answer.strip().splitlines() if line.strip()]
    for name, text in (("first", lines[0] if lines else ""), ("last", lines[-1] if len(lines) > 1 else "")):
        words = [_shape(word) for word in WORD.findall(text)]
        yield from (f"{name} {' '.join(words[:n])}" for n in range(1, EDGE + 1) if len(words) >= n)
    ending = [_shape(word) for word in WORD.findall(lines[-1] if lines else "")][-EDGE:]
    yield from (f"end {' '.join(ending[-n:])}" for n in range(1, len(ending) + 1))


def _crossed(prompt: str, answer: str) -> Iterator[str]:
    """Words of the prompt together with the form that the answer has: what is wanted of sums need not be of letters."""
    topics = [*dict.fromkeys(_shape(word).lower() for word in WORD.findall(prompt[-MOST_CHARACTERS:]))][:TOPIC_WORDS]
    band = length_band(answer)
    last = next((_shape(word) for word in WORD.findall(answer.strip().rpartition("\n")[2])), "")
    for topic in topics:
        yield f"{topic} × {band}"
        yield f"{topic} × last {last}"


def _shape(word: str) -> str:
    return "#" if word.isdigit() else word

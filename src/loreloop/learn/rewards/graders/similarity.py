"""How alike two texts are, from 0 to 1: edit ratio, BLEU, GLEU, METEOR and ROUGE, computed as their papers say.

Words are runs of letters and digits, in lower case for ROUGE and METEOR; for BLEU and GLEU signs are words too.
"""

from __future__ import annotations

import math
import re
from collections import Counter, deque
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache, partial

Words = Sequence[str]
_WORDS, _WORDS_AND_SIGNS = re.compile(r"\w+"), re.compile(r"\w+|[^\w\s]")
BLEU_ORDER = 4
KEPT_ROWS = 1024


def words_of(text: str) -> list[str]:
    """Runs of letters and digits, in lower case."""
    return _WORDS.findall(text.lower())


def words_and_signs_of(text: str) -> list[str]:
    """Runs of letters and digits, and every other sign by itself, as they are written."""
    return _WORDS_AND_SIGNS.findall(text)


def grams(words: Words, n: int) -> Counter[tuple[str, ...]]:
    """How often each run of n words occurs."""
    return Counter(tuple(words[at : at + n]) for at in range(len(words) - n + 1))


def longest_common(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """The length of the longest common subsequence, by whole rows of bits (Hyyrö, 2004)."""
    places: dict[Hashable, list[int]] = {}
    for at, one in enumerate(first):
        places.setdefault(one, []).append(at)

    # A row for each of many different signs would take the square of their number in memory, so few are kept.
    @lru_cache(KEPT_ROWS)
    def row_of(one: Hashable) -> int:
        bits = bytearray(len(first) // 8 + 1)
        for at in places.get(one, ()):
            bits[at >> 3] |= 1 << (at & 7)
        return int.from_bytes(bits, "little")

    every = (1 << len(first)) - 1
    row = every
    for one in second:
        matches = row & row_of(one)
        row = ((row + matches) | (row - matches)) & every
    return len(first) - row.bit_count()


def fuzzy_match(text: str, reference: str) -> float:
    """2 · LCS / (length + length), in characters: what rapidfuzz calls `ratio`, as a share. Two empty texts: 1."""
    together = len(text) + len(reference)
    return 2 * longest_common(text, reference) / together if together else 1.0


def bleu(text: str, reference: str) -> float:
    """Papineni et al. (2002) for one sentence: the geometric mean of clipped precisions of 1 to 4 words, times
    exp(1 - r/c) where the text is shorter. From 2 words on, 1 is added to both counts (Lin and Och, 2004)."""
    words, wanted = words_and_signs_of(text), words_and_signs_of(reference)
    if not words or not wanted:
        return float(words == wanted)
    logarithms = 0.0
    for n in range(1, BLEU_ORDER + 1):
        added = int(n > 1)
        matches = (grams(words, n) & grams(wanted, n)).total() + added
        if matches == 0:
            return 0.0
        logarithms += math.log(matches / (max(0, len(words) - n + 1) + added))
    # Only short texts are punished: for long ones the precisions do it already.
    brevity = min(0.0, 1 - len(wanted) / len(words))
    return math.exp(brevity + logarithms / BLEU_ORDER)


def gleu(text: str, reference: str) -> float:
    """Wu et al. (2016): common runs of 1 to 4 words, as a share of the longer text's."""
    words, wanted = words_and_signs_of(text), words_and_signs_of(reference)
    if not words or not wanted:
        return float(words == wanted)
    orders = range(1, BLEU_ORDER + 1)
    matches = sum((grams(words, n) & grams(wanted, n)).total() for n in orders)
    return matches / max(sum(grams(one, n).total() for n in orders) for one in (words, wanted))


def meteor(text: str, reference: str) -> float:
    """Banerjee and Lavie (2005) over equal words, no stems or synonyms: 10PR/(R+9P) · (1 - 0.5 · (runs/matches)³).
    Words are matched from the left; one goes on with its neighbour's run where it can, else begins at the first free
    place."""
    words, wanted = words_of(text), words_of(reference)
    if not words or not wanted:
        return float(words == wanted)
    places: dict[str, deque[int]] = {}
    for at, word in enumerate(wanted):
        places.setdefault(word, deque()).append(at)
    free = [*map(bool, wanted), False]
    matches, runs, before = 0, 0, -2  # of the word before: the place of its match; -2 has no neighbour
    for word in words:
        own = places.get(word, deque())
        # What a run took is thrown out only when it comes to the front, so that long texts take linear time.
        while own and not free[own[0]]:
            own.popleft()
        if not own:
            before = -2
            continue
        goes_on = before >= 0 and free[before + 1] and wanted[before + 1] == word
        place = before + 1 if goes_on else own[0]
        free[place] = False
        matches, runs, before = matches + 1, runs + (not goes_on), place
    if not matches:
        return 0.0
    precision, recall = matches / len(words), matches / len(wanted)
    return 10 * precision * recall / (recall + 9 * precision) * (1 - 0.5 * (runs / matches) ** 3)


def rouge_n(text: str, reference: str, n: int) -> float:
    """Lin (2004): F1 of common runs of n words."""
    own, wanted = grams(words_of(text), n), grams(words_of(reference), n)
    return _f1((own & wanted).total(), own.total(), wanted.total())


def rouge_l(text: str, reference: str) -> float:
    """Lin (2004): F1 of the longest common subsequence of words."""
    words, wanted = words_of(text), words_of(reference)
    return _f1(longest_common(words, wanted), len(words), len(wanted))


def _f1(n_common: int, n_own: int, n_wanted: int) -> float:
    # 2PR/(P+R) with P = common/own and R = common/wanted.
    return 2 * n_common / (n_own + n_wanted) if n_common else 0.0


METRICS: dict[str, Callable[[str, str], float]] = {
    "fuzzy_match": fuzzy_match,
    "bleu": bleu,
    "gleu": gleu,
    "meteor": meteor,
    **{f"rouge_{n}": partial(rouge_n, n=n) for n in range(1, 6)},
    "rouge_l": rouge_l,
}

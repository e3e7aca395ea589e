"""Finds phone numbers in a text, in time that grows with its length alone.

A number is a head of 1 to 3 digits, perhaps a code in parentheses, 2 to 5 blocks of 2 to 5 digits each, and one more
digit; one separator may stand between any two of these. As one regular expression that has thousands of readings for a
row of digits, all of which are tried. Here digits between separators are counted instead. Knows nothing of countries.
"""

from __future__ import annotations

import re

MARK = "[phone]"
LONGEST_HEAD, LEAST_BLOCKS, MOST_BLOCKS = 3, 2, 5  # digits, and blocks
SHORTEST_BLOCK, LONGEST_BLOCK = 2, 5  # digits
SHORTEST = 6  # characters: a head, two blocks and a last digit
# Digits between separators, of which a number has a head, five blocks and its last digit at most. The possessive
# repeats never give back what they have taken, so that nothing is read twice.
_PIECES = re.compile(
    r"(?<![\w.])\+?(?P<head>\d++)(?P<code>[ ./-]?\(\d{1,5}\)(?=[ ./-]?\d))?+"
    r"(?P<rest>(?:(?:[ ./-]|(?<=\)))\d{2,}+){0,5}+(?:(?:[ ./-]|(?<=\)))\d++)?+)"
)
_DIGITS = re.compile(r"\d+")


def without_phones(text: str) -> str:
    """The text with `[phone]` in the place of each number."""
    kept, at, end = list[str](), 0, 0
    while (found := _PIECES.search(text, at)) is not None:
        stop = _end(text, found) if found.end() - found.start() >= SHORTEST else None
        if stop is None:
            at = found.end("head")  # a number may still begin with a later piece
            continue
        kept += [text[end : found.start()], MARK]
        at = end = stop
    return "".join(kept) + text[end:]


def _end(text: str, found: re.Match[str]) -> int | None:
    """Where the longest number ends that begins with these pieces; None where none does."""
    n, stop = found.end("head") - found.start("head"), None
    # Without its last digit the first piece may be a number alone.
    if n > 1 and _is_number(*_behind_head(n - 1)) and not _goes_on(text, found.end("head")):
        stop = found.end("head")
    least, most = _behind_head(n)
    if found["code"] is not None:
        if n > LONGEST_HEAD:
            return stop
        least = most = 0
    for piece in _DIGITS.finditer(text, *found.span("rest")):
        n = piece.end() - piece.start()
        # Two digits are a block that no last digit follows.
        if n != SHORTEST_BLOCK and _is_number(least - (1 - n) // LONGEST_BLOCK, most + (n - 1) // SHORTEST_BLOCK):
            stop = stop if _goes_on(text, piece.end()) else piece.end()
        # How many blocks a row of digits can be has no gaps from the least to the most, and neither has a sum of such.
        least, most = least - -n // LONGEST_BLOCK, most + n // SHORTEST_BLOCK
        if n < SHORTEST_BLOCK or least > MOST_BLOCKS:
            break
    return stop


def _behind_head(n_digits: int) -> tuple[int, int]:
    """The least and the most blocks that stand behind a head of 1 to 3 digits in a piece of so many."""
    return max(0, -((LONGEST_HEAD - n_digits) // LONGEST_BLOCK)), (n_digits - 1) // SHORTEST_BLOCK


def _is_number(least: int, most: int) -> bool:
    return least <= MOST_BLOCKS and most >= LEAST_BLOCKS


def _goes_on(text: str, at: int) -> bool:
    return at < len(text) and (text[at].isalnum() or text[at] == "_")

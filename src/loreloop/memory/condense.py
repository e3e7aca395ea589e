"""Says the same in fewer words of the same text: function words go, then sentences and lines that add nothing.

Nothing is ever written anew. All names and numbers stay, and at least `SHARE_KEPT` of the different content words;
code stays as it is, line by line. The result of condensing is not condensed again, so it does not wear out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

from loreloop.memory.words import FENCE, WORDS_CACHED, read, sentences, words_of

SHARE_KEPT = 0.85
MARKUP = "*#`_"
JOINT = 4  # characters, about a token's, between one span and the next

BEGINNING = 5  # characters for each token that a text may have; a common text has more tokens in them
MARGIN = 8  # tokens

CountTokens = Callable[[str], int]


def tokens_beyond(text: str, most: int, count: CountTokens) -> int:
    """The tokens of a text, exact up to `most`. Of one that has more an estimate, which is over `most` too: it is not
    going to stand whole, so only its beginning is counted."""
    cut = text.rfind(" ", 0, BEGINNING * most)
    # A cut behind a word changes no more than the token there, which the margin allows for.
    if cut > 0 and len(text) > BEGINNING * most and (tokens := count(text[:cut])) > most + MARGIN:
        return tokens * len(text) // cut
    return count(text)


@dataclass(frozen=True)
class Span:
    """A sentence, or a line of code. `text` is what is left of it without function words."""

    text: str
    content: frozenset[str]
    code: bool = False


def spans_of(text: str) -> list[Span]:
    """In order. What stands between fences is code, and kept line by line."""
    found: list[Span] = []
    for number, part in enumerate(text.split(FENCE)):
        # Splitting at the fences puts code at the odd places, also where the last fence is never closed.
        code = number % 2 == 1
        for piece in part.split("\n") if code else sentences(part):
            # Function words of English may be keywords in code.
            words = piece.split()
            short = piece.strip() if code else " ".join(filter(None, map(content_in, words)))
            if short:
                content = chain.from_iterable(read(word).content for word in words)
                found.append(Span(short, frozenset(content), code))
    return found


@lru_cache(maxsize=WORDS_CACHED)
def content_in(word: str) -> str:
    """The word with its punctuation, or "" for a function word. Markup goes around it; in it "*" may be a product."""
    return word.strip(MARKUP) if read(word).content else ""


def joined(spans: list[Span]) -> str:
    """Sentences follow each other on a line; code keeps its lines."""
    text = ""
    for before, span in zip([None, *spans], spans, strict=False):
        between = "" if before is None else "\n" if before.code or span.code else " "
        text += between + span.text
    return text


def condense(text: str) -> str:
    """The condensed text, or the text itself where nothing could go. One pass drops the spans that give the fewest
    words of their own for their length, as long as few enough words are lost."""
    spans = spans_of(text)
    whole = words_of(text)
    # A word that stands in several spans is lost only when the last of them goes.
    times = Counter(word for span in spans for word in span.content)
    may_lose = int((1 - SHARE_KEPT) * len(whole.content))
    dropped: set[int] = set()

    def own(number: int) -> list[str]:
        return [word for word in spans[number].content if times[word] == 1]

    # The order is fixed before anything is dropped; each span is looked at once, which keeps a long turn cheap.
    for number in sorted(range(len(spans)), key=lambda n: (len(own(n)) / (len(spans[n].text) + 1), n)):
        lost = own(number)
        # Names and numbers are never given up, however few other words they come with.
        if len(lost) <= may_lose and not whole.marks.intersection(lost):
            dropped.add(number)
            may_lose -= len(lost)
            times.subtract(spans[number].content)
    return joined([span for number, span in enumerate(spans) if number not in dropped])


def excerpt(text: str, budget: int, count: CountTokens) -> str:
    """The spans of most worth for their length that fit into `budget` tokens, in their order; "" where none does.

    Names and numbers count three times as much as other content words. Length is told by characters, so that tokens are
    counted only of the spans that may be taken.
    """
    spans, marks = spans_of(text), words_of(text).marks

    def density(number: int) -> float:
        span = spans[number]
        return (len(span.content) + 2 * len(span.content & marks)) / (len(span.text) + JOINT)

    kept: set[int] = set()
    left = budget
    for number in sorted(range(len(spans)), key=lambda n: (-density(n), n)):
        # No span takes less than a token and the break behind it.
        if left <= 1:
            break
        # The one is for the space or line break between spans.
        cost = count(spans[number].text) + 1
        if cost <= left:
            kept.add(number)
            left -= cost
    return joined([spans[number] for number in sorted(kept)])

"""What a text is made of, told from its surface: words, content words, names, numbers, sentences.

The rules are for languages that put spaces between words and capitals on names; the list of function words is
English. Text in another script has no function words here, so nothing of it is ever left out word by word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

WORD = re.compile(r"[^\W_]+(?:['’][^\W\d_]+)*")
# Possessive (`++`), so that a long line is run through in stretches and never gone back over.
SENTENCE = re.compile(r"(?:[^.!?\n]++|[.!?](?=[^\s.!?\"')\]]))++[.!?\"')\]]*\s*|[.!?]+\s*|\n\s*")
FENCE = "```"
WORDS_CACHED = 1 << 14  # words whose comparable form is remembered; a conversation says the same ones again
LONGEST_REMEMBERED = 20_000  # characters
FEATURES_CACHED = 4096  # texts whose words are remembered; segments are looked at again and again

# Negations are missing on purpose: "not" changes what a sentence says.
FUNCTION_WORD_LIST = """
    a an the this that these those there here it its it's i i'm i've i'd i'll me my mine myself we we're we've we'd
    we'll us our ours ourselves you you're you've you'd you'll your yours yourself yourselves he he's he'd he'll him
    his himself she she's she'd she'll her hers herself they they're they've they'd they'll them their theirs
    themselves that's there's here's what's who's how's let's where's when's who whom whose which what
    am is are was were be been being do does did doing done have has had having will would shall should can could may
    might must ought to of in on at by for from with about into onto over under up down out off through during
    between among around as if then than so such too very just really quite also and or but because while until
    though although since unless whether both either each any some all more most much many few other another own same
    when where why how again further once ever even still already yet only get got getting
    oh hey hi hello wow yeah yes yep ok okay well hmm um uh thanks thank please haha lol gonna wanna kinda
"""
FUNCTION_WORDS = frozenset(FUNCTION_WORD_LIST.split())
NEGATIONS = frozenset(
    {"no", "not", "never", "none", "nothing", "nobody", "nor", "neither", "without", "cannot", "hardly"}
)


@dataclass(frozen=True)
class Words:
    """Of one text: `content` are its content words in lower case, `marks` its names and numbers, as written but in
    lower case; both are sets, for what is asked of them is whether they still stand somewhere."""

    content: frozenset[str]
    marks: frozenset[str]


def spell(word: str) -> str:
    """A word as it is compared: lower case, the plain apostrophe, no possessive."""
    plain = word.replace("’", "'").lower()
    return plain.removesuffix("'s") if plain not in FUNCTION_WORDS else plain


@lru_cache(maxsize=WORDS_CACHED)
def is_negation(word: str) -> bool:
    """Whether the word, in lower case, turns a statement into its opposite."""
    return word in NEGATIONS or word.endswith("n't")


@lru_cache(maxsize=WORDS_CACHED)
def content_word(word: str) -> str | None:
    """The word as it is compared, or None for a function word. "US" and "IT" in capitals are names, "May" a month."""
    plain = spell(word)
    if plain in FUNCTION_WORDS and word != "May" and (len(word) == 1 or not word.isupper()):
        return None
    return plain


def content_of(text: str) -> frozenset[str]:
    """The different content words of a text as they are compared."""
    return without_none(map(content_word, WORD.findall(text)))


def without_none(words: Iterable[str | None]) -> frozenset[str]:
    """The set of the words that are there."""
    found = set(words)
    found.discard(None)
    return frozenset(found)  # type: ignore[arg-type]


@lru_cache(maxsize=WORDS_CACHED)
def is_number(word: str) -> bool:
    """Whether the word holds a digit, as "31", "3rd" and "B2" do."""
    return any(character.isdigit() for character in word)


def sentences(text: str) -> list[str]:
    """The text cut behind its sentences and lines; joined, the pieces are the text again."""
    pieces = SENTENCE.findall(text)
    # Whoever drops sentences relies on nothing being lost between them.
    return pieces if "".join(pieces) == text else [text]


@lru_cache(maxsize=WORDS_CACHED)
def mark_of(word: str, first: bool) -> str | None:
    """A number or a name as it is compared, None for another word. A word looks like a name if it has a capital that
    the beginning of a sentence does not explain."""
    # "I" is a capital that names nothing.
    capitals = len(word) > 1 and word.isupper()
    if is_number(word) or capitals or (not first and word[0].isupper()):
        return content_word(word)
    return None


class Read(NamedTuple):
    """What stands between two spaces: its content words, its names and numbers, and those that would be left of them at
    the beginning of a sentence. `has_words` is false for mere punctuation."""

    content: tuple[str, ...]
    marks: tuple[str, ...]
    marks_if_first: tuple[str, ...]
    has_words: bool


@lru_cache(maxsize=WORDS_CACHED)
def read(chunk: str) -> Read:
    """Remembered, since a conversation says the same words again: a long turn then costs a look-up for each of them."""
    words = WORD.findall(chunk)
    content = tuple(filter(None, map(content_word, words)))
    marks = tuple(filter(None, (mark_of(word, False) for word in words)))
    first = tuple(filter(None, (mark_of(word, number == 0) for number, word in enumerate(words))))
    return Read(content, marks, first, bool(words))


def words_of(text: str) -> Words:
    """The content words, names and numbers of a text. Those of the last 4,096 texts are remembered, but for very long
    ones: they are looked at once, and would fill the process's memory."""
    return _remembered(text) if len(text) <= LONGEST_REMEMBERED else _words_of(text)


@lru_cache(maxsize=FEATURES_CACHED)
def _remembered(text: str) -> Words:
    return _words_of(text)


def _words_of(text: str) -> Words:
    content: list[tuple[str, ...]] = []
    marks: list[tuple[str, ...]] = []
    for sentence in sentences(text):
        is_first = True
        for chunk in map(read, sentence.split()):
            content.append(chunk.content)
            marks.append(chunk.marks_if_first if is_first else chunk.marks)
            is_first = is_first and not chunk.has_words
    return Words(frozenset(chain.from_iterable(content)), frozenset(chain.from_iterable(marks)))

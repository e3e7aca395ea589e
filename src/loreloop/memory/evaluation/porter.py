"""Porter's stemmer (M. F. Porter, An algorithm for suffix stripping, 1980): LoCoMo compares words by their stems.

Works on words in lower case. The names of the steps are those of the paper. LoCoMo's own program uses NLTK's variant,
which treats some dozen words and a "y" behind a vowel in another way.
"""

from __future__ import annotations

import re
from functools import lru_cache

DOUBLE = re.compile(r"([^aeiou])\1$")
STEP_2 = (
    *(("ational", "ate"), ("tional", "tion"), ("enci", "ence"), ("anci", "ance"), ("izer", "ize"), ("abli", "able")),
    *(("alli", "al"), ("entli", "ent"), ("eli", "e"), ("ousli", "ous"), ("ization", "ize"), ("ation", "ate")),
    *(("ator", "ate"), ("alism", "al"), ("iveness", "ive"), ("fulness", "ful"), ("ousness", "ous"), ("aliti", "al")),
    *(("iviti", "ive"), ("biliti", "ble")),
)
STEP_3 = (
    *(("icate", "ic"), ("ative", ""), ("alize", "al"), ("iciti", "ic"), ("ical", "ic"), ("ful", ""), ("ness", "")),
)
STEP_4 = (
    *("al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "ion", "ou", "ism"),
    *("ate", "iti", "ous", "ive", "ize"),
)


def shape(word: str) -> str:
    """The word's letters as consonants (c) and vowels (v); y is a vowel behind a consonant."""
    found = ""
    for letter in word:
        vowel = letter in "aeiou" or (letter == "y" and found.endswith("c"))
        found += "v" if vowel else "c"
    return found


def measure(stem: str) -> int:
    """How often a vowel is followed by a consonant: m in the paper."""
    return shape(stem).count("vc")


def has_vowel(stem: str) -> bool:
    """*v* in the paper: whether the stem holds a vowel."""
    return "v" in shape(stem)


def ends_short(stem: str) -> bool:
    """*o in the paper: consonant, vowel, consonant, the last not w, x or y."""
    return shape(stem).endswith("cvc") and stem[-1] not in "wxy"


@lru_cache(maxsize=1 << 14)
def stem(word: str) -> str:
    """The word's stem after all five steps; words of one or two letters stay as they are."""
    if len(word) <= 2:
        return word
    word = step_1(word)
    word = longest(word, STEP_2, 0)
    word = longest(word, STEP_3, 0)
    return step_5(step_4(word))


def step_1(word: str) -> str:
    """Plurals, past participles and gerunds, and a final y that becomes i: steps 1a, 1b and 1c of the paper."""
    if word.endswith(("sses", "ies")):
        word = word[:-2]
    elif word.endswith("s") and not word.endswith("ss"):
        word = word[:-1]
    if word.endswith("eed"):
        word = word[:-1] if measure(word[:-3]) > 0 else word
    else:
        cut = next((word[: -len(end)] for end in ("ed", "ing") if word.endswith(end)), None)
        if cut is not None and has_vowel(cut):
            word = tidied(cut)
    return word[:-1] + "i" if word.endswith("y") and has_vowel(word[:-1]) else word


def tidied(cut: str) -> str:
    """What step 1b does once it has taken an ending off."""
    if cut.endswith(("at", "bl", "iz")):
        return cut + "e"
    if DOUBLE.search(cut) and cut[-1] not in "lsz":
        return cut[:-1]
    return cut + "e" if measure(cut) == 1 and ends_short(cut) else cut


def longest(word: str, endings: tuple[tuple[str, str], ...], most: int) -> str:
    """Replaces the longest of the endings that the word has, if the measure of what is left is over `most`."""
    fitting = [pair for pair in endings if word.endswith(pair[0])]
    if not fitting:
        return word
    end, new = max(fitting, key=lambda pair: len(pair[0]))
    cut = word[: -len(end)]
    return cut + new if measure(cut) > most else word


def step_4(word: str) -> str:
    """Takes off a last suffix such as -ance or -ment where the measure of what is left is over 1; -ion goes only behind
    s or t."""
    if word.endswith("ion") and not word.endswith(("sion", "tion")):
        return word
    return longest(word, tuple((end, "") for end in STEP_4), 1)


def step_5(word: str) -> str:
    """Takes off a final e, and one l of a final ll, where the rest is long enough: steps 5a and 5b of the paper."""
    if word.endswith("e"):
        cut = word[:-1]
        if measure(cut) > 1 or (measure(cut) == 1 and not ends_short(cut)):
            word = cut
    return word[:-1] if word.endswith("ll") and measure(word) > 1 else word

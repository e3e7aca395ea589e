"""The form of an answer in some thirty numbers: length, lines, lists, numbers, JSON, and how it goes with its prompt.

Each is of the order of 1, so that no weight has to be large. Nothing here is a judgement: whether short is better than
long, or a list better than a sentence, is learned.
"""

from __future__ import annotations

import math
import re
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from loreloop.text.tools.json_scan import strict_json

NUMBER = re.compile(r"\d+(?:\.\d+)?")
WORDS = re.compile(r"\w+")
SENTENCE_ENDS = re.compile(r"[.!?](?:\s|$)")
BULLET, NUMBERED = re.compile(r"^\s*[-*•]\s", re.M), re.compile(r"^\s*\d+[.)]\s", re.M)
LABEL = re.compile(r"^\W*[A-Za-z][\w ]{0,20}:", re.M)  # "Answer: …" at the beginning of a line
REFUSAL = re.compile(
    r"\b(?:i (?:can(?:no|['’])?t|can not|won['’]t)|i(?:['’]m| am) (?:not able|unable|sorry)|as an ai)\b", re.I
)
HEDGE = re.compile(r"\b(?:might|maybe|perhaps|probably|i (?:think|believe|guess)|as far as i know|not sure)\b", re.I)
MOST_READ = 20_000  # characters; whatever is behind them counts as length alone

FORM_NAMES = (
    "log_words",
    "log_words_squared",
    "log_characters",
    "words_20",
    "words_60",
    "words_150",
    "sentences",
    "words_a_sentence",
    "lines",
    "paragraphs",
    "bullets",
    "numbered",
    "labels",
    "last_line_short",
    "last_line_label",
    "json",
    "code",
    "bold",
    "digits",
    "numbers",
    "capitals",
    "punctuation",
    "exclamations",
    "questions",
    "ends_whole",
    "hedges",
    "refusals",
    "repeated",
    "echo",
    "answered_words",
    "shared_numbers",
    "new_numbers",
    "empty",
)


def form_of(prompt: str, answer: str) -> NDArray[np.float64]:
    """The numbers in the order of FORM_NAMES."""
    read = answer[:MOST_READ]
    words = WORDS.findall(read.lower())
    numbers = _length(answer, read, words) | _layout(read) | _signs(read, words) | _beside(prompt, read, words)
    return np.array([numbers[name] for name in FORM_NAMES])


def length_band(answer: str) -> str:
    """A word for how long an answer is; each band is about twice as long as the one before."""
    return f"{int(math.log2(1 + len(answer.split())))} twofold"


def repetition(text: str) -> float:
    """The share of a text's runs of three words that it has had before: 0 for a text that never repeats itself."""
    words = WORDS.findall(text.lower())
    runs = [tuple(words[place : place + 3]) for place in range(len(words) - 2)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def is_refusal(text: str) -> bool:
    """Whether an answer begins by saying that it will not answer, in the usual words."""
    return bool(REFUSAL.search(text[:200]))


def _length(answer: str, read: str, words: list[str]) -> dict[str, float]:
    log_words = math.log1p(len(answer.split()))
    n_sentences = max(1, len(SENTENCE_ENDS.findall(read)))
    return {
        # Around 20 words, so that the square is not the same number again.
        "log_words": (log_words - 3) / 1.5,
        "log_words_squared": ((log_words - 3) / 1.5) ** 2,
        "log_characters": (math.log1p(len(answer)) - 4.5) / 1.5,
        # Where a taste ends is not known; three soft steps let it end anywhere.
        **{f"words_{n}": math.tanh((len(answer.split()) - n) / (0.5 * n)) for n in (20, 60, 150)},
        "sentences": math.log(n_sentences),
        "words_a_sentence": math.tanh(len(words) / n_sentences / 20),
        "empty": float(not answer.strip()),
    }


def _layout(read: str) -> dict[str, float]:
    lines = [line for line in read.splitlines() if line.strip()]
    last = lines[-1] if len(lines) > 1 else ""
    return {
        "lines": math.log1p(max(0, len(lines) - 1)),
        "paragraphs": math.log1p(read.strip().count("\n\n")),
        "bullets": math.log1p(len(BULLET.findall(read))),
        "numbered": math.log1p(len(NUMBERED.findall(read))),
        "labels": math.log1p(len(LABEL.findall(read))),
        "last_line_short": float(0 < len(last) < 30),
        "last_line_label": float(bool(LABEL.match(last))),
        "json": float(_is_json(read)),
        "code": float("```" in read),
        "bold": float("**" in read),
        "ends_whole": float(read.rstrip()[-1:] in tuple(".!?)}]")),
    }


def _signs(read: str, words: list[str]) -> dict[str, float]:
    n = max(1, len(read))
    return {
        "digits": 4 * sum(map(str.isdigit, read)) / n,
        "numbers": math.log1p(len(NUMBER.findall(read))),
        "capitals": 4 * sum(map(str.isupper, read)) / n,
        "punctuation": 4 * sum(not (sign.isalnum() or sign.isspace()) for sign in read) / n,
        "exclamations": math.log1p(read.count("!")),
        "questions": math.log1p(read.count("?")),
        "hedges": math.log1p(len(HEDGE.findall(read))),
        "refusals": float(is_refusal(read)),
        "repeated": repetition(read),
    }


def _beside(prompt: str, read: str, words: list[str]) -> dict[str, float]:
    """How the answer goes with its prompt: which words and numbers of it come back, and which numbers are new."""
    asked = Counter(word for word in WORDS.findall(prompt.lower()[-MOST_READ:]) if len(word) > 3)
    said = Counter(word for word in words if len(word) > 3)
    given, found = set(NUMBER.findall(prompt)), set(NUMBER.findall(read))
    return {
        "echo": sum((said & asked).values()) / max(1, sum(said.values())),
        "answered_words": len(said.keys() & asked.keys()) / max(1, len(asked)),
        "shared_numbers": len(given & found) / max(1, len(given)),
        "new_numbers": math.log1p(len(found - given)),
    }


def _is_json(text: str) -> bool:
    if not text.strip().startswith(("{", "[")):
        return False
    try:
        strict_json(text)
    except ValueError:
        return False
    return True

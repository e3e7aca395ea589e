"""The score of LoCoMo's paper (Maharana et al., 2024): the F1 of the answer's tokens, by category.

Words are compared in lower case, without punctuation and the words a, an, the and and, by their stems. An answer of a
multi-hop question is a list: each of its parts is compared with the best part of what the model said. Of an open-domain
answer what stands before the first semicolon counts. An adversarial question is answered by saying that it is not told.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from statistics import mean

from loreloop.memory.evaluation.cases import Question
from loreloop.memory.evaluation.porter import stem

LEFT_OUT = re.compile(r"\b(?:a|an|the|and)\b")
NOT_TOLD = ("no information available", "not mentioned")
WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def score(question: Question, answer: str) -> float:
    """From 0 to 1, what an answer earns by the rule of its question's category; an adversarial question has either of
    the two."""
    if question.kind == "adversarial":
        return float(any(phrase in answer.lower() for phrase in NOT_TOLD))
    if question.kind == "multi-hop":
        parts = [part.strip() for part in answer.split(",")]
        return mean(max(f1(part, wanted.strip()) for part in parts) for wanted in question.answer.split(","))
    wanted = question.answer.split(";")[0].strip() if question.kind == "open-domain" else question.answer
    return f1(answer, wanted)


def f1(answer: str, wanted: str) -> float:
    """The harmonic mean of precision and recall of the words, each counted as often as it stands."""
    ours, theirs = words_of_answer(answer), words_of_answer(wanted)
    shared = (Counter(ours) & Counter(theirs)).total()
    return 2 * shared / (len(ours) + len(theirs)) if shared else 0.0


def words_of_answer(text: str) -> list[str]:
    """The stems of the words that count, in order and with repetitions."""
    return [stem(word) for word in LEFT_OUT.sub(" ", text.lower().translate(WITHOUT_PUNCTUATION)).split()]

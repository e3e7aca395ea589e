"""What many appends do to a memory: whether facts wear out, whether it gets slower, what is prefilled again."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from statistics import mean

import msgspec

from loreloop.memory.condense import CountTokens
from loreloop.memory.evaluation import synthetic
from loreloop.memory.evaluation.recall import Estimate, Grouped, turns_kept
from loreloop.memory.importance import SurfaceImportance
from loreloop.memory.memory import Memory, Parts
from loreloop.memory.refill import ExtractiveRefill
from loreloop.memory.state import MemoryState
from loreloop.memory.turns import Turn

SPAN = 400  # appends over which a latency is taken


class Survival(msgspec.Struct, frozen=True):
    """After so many edits: of all facts, how many stand whole; of those with a segment left, how many do."""

    edits: int
    standing: Estimate
    intact: Estimate


class Pace(msgspec.Struct, frozen=True):
    """Mean milliseconds of an append around two turns; the tokens to be prefilled again, a turn, as a share of the
    budget, over the first 1,000 appends and over all."""

    early_ms: float
    late_ms: float
    reprefilled_1000: float
    reprefilled: float


def extractive(budget: int, count: CountTokens) -> Memory:
    """An empty memory of `budget` tokens that asks no model."""
    return Memory(MemoryState(budget), Parts(count, SurfaceImportance(), ExtractiveRefill(count)))


def survival(count: CountTokens, edits: Sequence[int], budget: int = 1024, seeds: int = 6) -> list[Survival]:
    """Facts of one's own at even distances in small talk; each is looked for when so many edits have come after it."""
    standing, intact = {n: Grouped() for n in edits}, {n: Grouped() for n in edits}
    for seed in range(seeds):
        conversation = synthetic.needles(seed, 3000)
        memory = extractive(budget, count)
        edits_at_fact: dict[int, int] = {}  # the edits that had been made when a fact was told
        facts = {turn for question in conversation.questions for turn in question.evidence}
        for number, turn in enumerate(conversation.turns):
            before = memory.state.costs.edits
            memory.append(turn)
            if number in facts:
                edits_at_fact[number] = memory.state.costs.edits
            # Facts are looked for only right after an edit, for nothing changes between edits.
            if memory.state.costs.edits > before:
                due = {fact: memory.state.costs.edits - then for fact, then in edits_at_fact.items()}
                # A fact counts once for each number of edits that was asked for, at the edit that reaches it.
                due = {fact: passed for fact, passed in due.items() if passed in standing}
                kept = turns_kept(memory.state.segments, conversation.turns) if due else set()
                left = {turn for segment in memory.state.segments for turn in segment.turns}
                for fact, passed in due.items():
                    standing[passed].add(conversation, fact in kept)
                    if fact in left:
                        intact[passed].add(conversation, fact in kept)
    return [Survival(n, standing[n].estimate(), intact[n].estimate()) for n in edits]


def pace(count: CountTokens, budget: int = 4096, early: int = 500, late: int = 10000) -> Pace:
    """Small talk with a fact in every tenth turn, until `late` turns; no text comes twice."""
    draw = random.Random("pace")
    memory = extractive(budget, count)
    seconds: list[float] = []
    first = 0.0
    for number in range(late):
        role = "user" if number % 2 == 0 else "assistant"
        # The number makes each text a new one, so that no cache makes late appends look cheap.
        text = f"{synthetic.small_talk(draw, role)} ({number})"
        if number % 10 == 0:
            text = f"My {draw.choice(synthetic.SUBJECTS)} {number} is {synthetic.value_of(draw, 'gym')}."
        started = time.perf_counter()
        memory.append(Turn(role, text))
        seconds.append(time.perf_counter() - started)
        if number == 999:
            first = memory.state.costs.reprefilled / 1000 / budget
    early_ms = 1000 * mean(seconds[early : early + SPAN])
    late_ms = 1000 * mean(seconds[-SPAN:])
    return Pace(early_ms, late_ms, first, memory.state.costs.reprefilled / late / budget)

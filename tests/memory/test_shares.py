"""Retrieval that the memory has a say in, with the memory in a share of the budget, and retrieval alone."""

import pytest

from loreloop.memory.evaluation import synthetic
from loreloop.memory.evaluation.contenders import Bm25, segments_of
from loreloop.memory.evaluation.shares import Together, Weighed, share_rows, worths_of
from loreloop.memory.turns import Turn
from tests.memory.conversations import count


def test_a_turn_beside_one_that_is_named_ranks_above_those_that_are_not() -> None:
    turns = [
        Turn("user", text) for text in ("Rain again.", "Where is your boat?", "In Bergen.", "Fine.", "Good night.")
    ]
    scores = Together([Bm25(turns)]).scores("the boat")
    assert sorted(range(5), key=lambda n: -scores[n])[:3] == [1, 0, 2]
    assert min(scores) > 0
    assert Together([Bm25([])]).scores("the boat") == []


def test_worth_decides_between_turns_that_a_question_names_alike() -> None:
    turns = [
        Turn("user", "Tea is fine."),
        Turn("user", "Tea I hate since 1987, in Bergen."),
        Turn("user", "Tea is tea."),
    ]

    class Alike:
        def scores(self, query: str) -> list[float]:
            return [1.0, 1.0, 1.0]

    worths = worths_of(segments_of(turns, count))
    scores = Weighed(Alike(), worths).scores("tea")
    assert scores.index(max(scores)) == 1
    assert Weighed(Alike(), [2.0, 2.0, 2.0]).scores("tea") == [1.0, 1.0, 1.0]


def test_a_memory_beside_retrieval_keeps_within_the_budget_and_its_gain_is_told_question_by_question() -> None:
    rows = {row.contender: row for row in share_rows([synthetic.needles(3, 400)], [400], count)}
    alone, beside = rows["BM25 retrieval"], rows["BM25 retrieval by worth too, memory in 1/8"]
    gained = rows["BM25: gained by worth and memory in 1/8"]
    assert [name for name in rows if "1/" in name][:3] == [
        f"BM25 retrieval by worth too, memory in 1/{n}" for n in (8, 4, 2)
    ]
    assert gained.recall.mean == pytest.approx(beside.recall.mean - alone.recall.mean)
    assert gained.recall.n == alone.recall.n == 20
    assert beside.recall.mean > 0.9
    assert share_rows([synthetic.needles(3, 400)], [9], count)[0].recall.mean < 0.5

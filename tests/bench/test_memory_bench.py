"""The studies of bench/ read what the memory's evaluation gives, and leave out what is not theirs."""

import json

import msgspec
import pytest

from bench.memory_study import of_file
from bench.memory_written import beginning, row
from bench.record import about_the_run
from loreloop.memory.evaluation import minilm, synthetic
from loreloop.memory.evaluation.contenders import BLIND
from tests.memory.conversations import count


def test_a_study_has_both_tables_and_can_be_written_with_what_it_ran_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm, "folder", lambda: None)  # a model is slow, and its rows are like the others
    report = of_file([synthetic.needles(0, 100)], [0.25], count, blind_alone=False)
    assert {name: len(rows) >= 3 for name, rows in report.tables.items()} == {
        "not knowing the question": True,
        "knowing the question": True,
    }
    written = json.loads(msgspec.json.encode(msgspec.to_builtins(report) | about_the_run()))
    assert {"tables", "machine", "versions", "commit", "date"} <= written.keys()
    alone = of_file([synthetic.needles(0, 100)], [0.25], count, blind_alone=True)
    assert alone.tables.keys() == {"not knowing the question"}


def test_the_beginning_of_a_conversation_has_only_questions_about_it() -> None:
    whole = synthetic.needles(0, 200)
    part = beginning(whole, 60)
    assert part.turns == whole.turns[:60]
    assert 0 < len(part.questions) < len(whole.questions)
    assert max(turn for one in part.questions for turn in one.evidence) < 60
    found = row("recency window", BLIND["recency window"], part, 0.5, count)
    assert (found.budget, found.recall.n) == (0.5, len(part.questions))

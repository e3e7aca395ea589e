"""The baselines in which a model writes keep to the budget, read every turn, and say where their text comes from."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loreloop.memory.evaluation.cases import Conversation
from loreloop.memory.evaluation.recall import turns_kept
from loreloop.memory.evaluation.written import cut, observed, overwrite, running_summary, written_by
from loreloop.memory.turns import Turn
from loreloop.protocol.errors import BadRequest
from tests.memory.conversations import count, small_talk
from tests.memory.test_budget import TURNS

NAMES = list(written_by(lambda _prompt, _max_tokens: ""))


def faithful_model(prompt: str, max_tokens: int) -> str:
    """Keeps the names that it reads, and nothing else."""
    names = " ".join(dict.fromkeys(re.findall(r"Ann\d+", prompt)))
    while count(names) > max_tokens:
        names = names.partition(" ")[2]
    return names


def conversation(n: int) -> Conversation:
    turns = [Turn("user", f"Ann{k}") if k % 5 == 0 else small_talk(k) for k in range(n)]
    return Conversation("c", tuple(turns), ())


@pytest.mark.parametrize("name", NAMES)
def test_names_that_the_model_keeps_are_remembered_to_the_end(name: str) -> None:
    talk = conversation(60)
    segments = written_by(faithful_model)[name](talk, 200, count)
    assert sum(segment.tokens for segment in segments) <= 200
    assert {k for k in range(60) if k % 5 == 0} <= turns_kept(segments, talk.turns)
    assert segments[0].form == "written"


@given(st.sampled_from(NAMES), st.integers(1, 120), st.lists(TURNS, max_size=25), st.text(max_size=400))
@settings(max_examples=200, deadline=None)
def test_whatever_the_model_writes_fits(name: str, budget: int, turns: list[Turn], answer: str) -> None:
    def model(_prompt: str, _max_tokens: int) -> str:
        return answer

    talk = Conversation("c", tuple(turns), ())
    segments = written_by(model)[name](talk, budget, count)
    assert sum(segment.tokens for segment in segments) <= budget
    assert all(turn < len(turns) for segment in segments for turn in segment.turns)


def test_what_each_asks_of_the_model() -> None:
    prompts: list[str] = []

    def model(prompt: str, _max_tokens: int) -> str:
        prompts.append(prompt)
        return "Ann met Bo."

    talk = conversation(30)
    summary = running_summary(model)(talk, 100, count)
    assert [segment.text for segment in summary[1:]] == [t.text for t in talk.turns[-len(summary) + 1 :]]
    assert "Summary so far:\nAnn met Bo.\n" in prompts[-1]
    assert summary[0].turns == tuple(range(30 - len(summary) + 1))
    prompts.clear()
    assert [segment.text for segment in overwrite(model)(talk, 100, count)] == ["Ann met Bo."]
    assert len(prompts) == 1
    prompts.clear()
    observed(model, 0.3, 0.2)(talk, 100, count)
    kinds = ["Notes on" in prompt for prompt in prompts]
    assert kinds[:5] == [False, False, False, False, True]
    assert "Ann met Bo.\n" * 4 in prompts[4]
    with pytest.raises(BadRequest, match="exceed"):
        observed(model, 0.6, 0.5)


@given(st.text(max_size=200), st.integers(0, 60))
def test_a_cut_is_a_beginning_that_fits(text: str, most: int) -> None:
    short = cut(text, "x: ", most, count)
    assert text.startswith(short)
    assert not short or count(f"x: {short}\n") <= most

"""What behaviour says of answers: asked again, left open, used."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loreloop.learn.loop.implicit import Signs, alike, signals
from loreloop.protocol.episodes import Person, Turn

LONG = "First stop the pump, then close the valve, and only then open the lid of the tank."


def turn(id: str, asked: str, answer: str | dict[str, Any] = "Yes.", at: float = 0.0, **fields: Any) -> Turn:
    usual: dict[str, Any] = {"person": Person("k", "ann"), "episode_id": "e", "deployment": "bot"}
    messages = fields.pop("messages", ({"role": "user", "content": asked},))
    said = answer if isinstance(answer, dict) else {"role": "assistant", "content": answer}
    return Turn(
        number=int(at) + 1,
        id=id,
        created=at,
        messages=messages,
        base_model="m",
        version=1,
        answer=said,
        **usual | fields,
    )


def found(*turns: Turn, now: float = 1e6) -> dict[str, tuple[str, bool]]:
    """Turn → what was noticed, and whether the answer was taken."""
    return {said.target_id: (said.tags["sign"], bool(said.value)) for said in signals(turns, now)}


def test_who_asks_again_in_other_words_was_not_helped() -> None:
    first = turn("a", "How do I reset my password?")
    assert found(first, turn("b", "how can I reset the password", at=60)) == {"a": ("rephrase", False)}
    assert found(first, turn("b", "Thanks! What does it cost?", at=60)) == {}
    assert found(first, turn("b", "how can I reset the password", at=6000)) == {}
    assert found(first, turn("b", "how can I reset the password", at=60, person=Person("k", "bob"))) == {}


def test_another_sum_is_another_question() -> None:
    assert found(turn("a", "What is 17 + 25?"), turn("b", "What is 17 + 26?", at=5)) == {}
    assert found(turn("a", "What is 17 + 25?"), turn("b", "What's 17 + 25?", at=5)) == {"a": ("rephrase", False)}


def test_two_answers_to_one_request_are_no_rephrase_and_neither_are_rounds_of_tools() -> None:
    assert found(turn("a", "How do I pay?"), turn("a:1", "How do I pay?")) == {}
    asked = {"role": "user", "content": "How warm is it in Rome?"}
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}
    result = {"role": "tool", "content": "17 degrees"}
    first = turn("a", "", messages=(asked,), answer=call)
    assert found(first, turn("b", "", at=2, messages=(asked, call, result))) == {}


@pytest.mark.parametrize(
    ("fields", "signs"),
    [
        ({"answer": "Which one do you mean?"}, True),
        ({"answer": "The valves are", "finish_reason": "length"}, True),
        ({"answer": {"content": "", "tool_calls": [{}]}}, True),
        ({"answer": "It is 4."}, False),
    ],
)
def test_an_open_end_that_nobody_came_back_to_is_one(fields: dict[str, Any], signs: bool) -> None:
    last = turn("a", "Which valve?", **fields)
    assert found(last) == ({"a": ("abandon", False)} if signs else {})
    assert found(last, now=60.0) == {}, "somebody may still come"
    assert "a" not in found(last, turn("b", "The red one, please.", at=900))


def test_a_long_piece_that_comes_back_was_used() -> None:
    answer = turn("a", "How do I open the tank?", LONG)
    letter = f"Please translate this letter: Dear all, {LONG.lower()} {LONG} Yours, Ann"
    assert found(answer, turn("b", letter, at=60)) == {"a": ("copy", True)}
    assert found(answer, turn("b", f"> {LONG}\nThis did not work at all.", at=60)) == {}
    assert found(answer, turn("b", LONG[:50], at=60)) == {}


@pytest.mark.parametrize("fields", [{"side": True}, {"consent": False}, {"fate": "expired"}, {"answer": {}}])
def test_some_turns_say_nothing(fields: dict[str, Any]) -> None:
    assert found(turn("a", "Why?", **{"answer": {"content": "Why not?"}} | fields)) == {}


def test_a_statement_is_the_same_however_often_it_is_made() -> None:
    turns = [turn("a", "How do I reset my password?"), turn("b", "How do I reset my password??", at=9)]
    (first,), (again,) = signals(turns, 100.0), signals([*turns, *turns], 100.0)
    assert first == again
    assert (first.id, first.source, first.who, first.metric) == ("implicit-rephrase-a", "implicit", "ann", "accepted")
    assert signals(turns, 100.0, kinds=["copy"]) == []
    assert signals(turns, 100.0, Signs(alike=1.1)) == []


@given(st.text(max_size=80), st.text(max_size=80))
def test_likeness_is_even_and_between_0_and_1(one: str, other: str) -> None:
    assert 0 <= alike(one, other) == alike(other, one) <= 1
    assert alike(one, one) == (1.0 if one.strip() else 0.0)

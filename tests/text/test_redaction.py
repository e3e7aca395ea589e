"""Redaction: what the kinds find and leave, expressions in linear time, messages of every form."""

from __future__ import annotations

import re
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loreloop.protocol.errors import BadRequest
from loreloop.protocol.openai_rest import ChatMessage
from loreloop.text.conversation import MadeCall, Picture, Turn
from loreloop.text.openai_messages import message_of_turn, turn_of
from loreloop.text.redaction import KINDS, redactor


@pytest.mark.parametrize(
    ("kind", "text", "left"),
    [
        ("email", "to ann.b+x@mail.example.org, please", "to [email], please"),
        ("email", "a @ b and x@y", "a @ b and x@y"),
        ("phone", "call +49 30 1234567 or (030) 12", "call [phone] or (030) 12"),
        ("phone", "in 2026 we had 17 of 42", "in 2026 we had 17 of 42"),
        ("card", "4111 1111 1111 1111!", "[card]!"),
        ("iban", "DE89 3704 0044 0532 0130 00.", "[iban]."),
        ("ip", "from 192.168.0.1 on", "from [ip] on"),
        ("key", "use sk-abcdefghijklmnop1234", "use [key]"),
    ],
)
def test_kinds_find_what_they_are_called_for(kind: str, text: str, left: str) -> None:
    assert redactor((kind,)).text(text) == left


@pytest.mark.timed
@pytest.mark.parametrize("rule", [*KINDS, "(a*)*b", "(x+x+)+y"])
def test_no_rule_takes_long(rule: str) -> None:
    found = redactor((rule,))
    for text in ("a" * 50_000, "x" * 50_000, "1 " * 50_000, "a@" * 20_000, "A1" * 20_000, "1." * 20_000):
        began = time.perf_counter()
        found.text(text)
        assert time.perf_counter() - began < 5


HOSTILE = [
    "1" * 22 + "x ",
    "1" * 30 + " ",
    "1 ",
    "11 ",
    "12 34 5",
    "1 (1)1 ",
    "1(11111)11111-",
    "a.-@",
    "a@a.",
    "1111 ",
    "A1 ",
    "DE11 ",
    "1.1.1.",
    "sk-x_",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.timed
def test_the_time_of_a_kind_grows_with_the_text_alone(kind: str) -> None:
    """Twice as much text takes about twice as long, up to a megabyte; what grows with the square would take four
    times. All texts together, the best of three, since machines are shared."""
    found = redactor((kind,))

    def seconds(n: int) -> float:
        texts = [(unit * n)[:n] for unit in HOSTILE]
        taken = []
        for _ in range(3):
            began = time.process_time()
            for text in texts:
                found.text(text)
            taken.append(time.process_time() - began)
        return min(taken)

    n = 35_000
    small, large = seconds(n), seconds(2 * n)
    assert large < 3 * small + 0.05
    began = time.process_time()
    found.text((HOSTILE[0] * (1 << 20))[: 1 << 20])
    assert time.process_time() - began < 3 * (1 << 20) / (2 * n) * large


@pytest.mark.timed
def test_a_row_of_digits_costs_about_what_any_text_does() -> None:
    """One expression tries thousands of readings of each row, which is a hundred times as much."""
    phone = redactor(("phone",))

    def seconds(unit: str) -> float:
        taken = []
        for _ in range(3):
            began = time.process_time()
            phone.text((unit * 60_000)[:60_000])
            taken.append(time.process_time() - began)
        return min(taken)

    assert seconds("1" * 22 + "x ") < 5 * seconds("12 34 5x ") + 0.05


# The same numbers as one expression, which takes thousands of steps for a row of digits.
PHONE = re.compile(r"(?<![\w.])\+?\d{1,3}[ ./-]?(?:\(\d{1,5}\)[ ./-]?)?(?:\d{2,5}[ ./-]?){2,5}\d(?!\w)")
SEPARATORS = st.sampled_from([*" -./+()x_", "(1)", "(030)", "1" * 26])
NUMBERS = st.lists(SEPARATORS | st.text("0123456789", min_size=1, max_size=9), max_size=14).map("".join)


@given(NUMBERS)
@settings(max_examples=500)
def test_a_phone_number_is_what_its_expression_says(text: str) -> None:
    first, left = PHONE.search(text), redactor(("phone",)).text(text)
    if first is None:
        assert left == text
        return
    assert left.startswith(f"{text[: first.start()]}[phone]")
    # Where a number ends the two may differ; that none is left they may not.
    assert PHONE.search(left) is None


@pytest.mark.parametrize("rule", ["(", r"(?=x)", "x*", ""])
def test_rules_that_are_none_are_refused(rule: str) -> None:
    with pytest.raises(BadRequest, match="redact"):
        redactor((rule,))


def test_every_text_of_a_message_is_looked_at() -> None:
    call = {"id": "a@b.cc", "type": "function", "function": {"name": "f", "arguments": '{"to": "a@b.cc"}'}}
    message: dict[str, Any] = {
        "role": "assistant",
        "content": [{"type": "text", "text": "a@b.cc"}, {"type": "image_url", "image_url": {"url": "data:x"}}],
        "reasoning_content": "of a@b.cc",
        "tool_calls": [call],
    }
    left = redactor(("email",)).message(message)
    assert left["content"] == [{"type": "text", "text": "[email]"}, message["content"][1]]
    assert left["reasoning_content"] == "of [email]"
    assert left["tool_calls"][0]["function"]["arguments"] == '{"to": "[email]"}'
    assert left["tool_calls"][0]["id"] == "a@b.cc"  # a result refers to it


WORDS = st.text(max_size=8).filter(lambda text: text.isprintable())
TURNS = st.builds(
    Turn,
    role=st.just("assistant"),
    content=WORDS,
    thinking=st.none() | WORDS.filter(bool),
    calls=st.lists(st.builds(MadeCall, WORDS.filter(bool), st.just("f"), WORDS.filter(bool)), max_size=2).map(tuple),
    name=st.none() | WORDS,
)


@given(TURNS)
def test_a_turn_is_the_same_behind_its_message(turn: Turn) -> None:
    assert turn_of(msgspec.convert(message_of_turn(turn), ChatMessage)) == turn


def test_pictures_and_results_are_messages_too() -> None:
    picture = Turn("user", "look", parts=("look", Picture("data:image/png;base64,AA==")))
    result = Turn("tool", "42", call_id="c")
    for turn in (picture, result):
        assert turn_of(msgspec.convert(message_of_turn(turn), ChatMessage)) == turn

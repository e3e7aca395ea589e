"""Redaction: what the kinds find and leave, expressions in linear time, messages of every form."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest
from hypothesis import given
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


@pytest.mark.parametrize("rule", [*KINDS, "(a*)*b", "(x+x+)+y"])
def test_no_rule_takes_long(rule: str) -> None:
    found = redactor((rule,))
    for text in ("a" * 50_000, "x" * 50_000, "1 " * 50_000, "a@" * 20_000, "A1" * 20_000, "1." * 20_000):
        began = time.perf_counter()
        found.text(text)
        assert time.perf_counter() - began < 5


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

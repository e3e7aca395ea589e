"""What is told of a reply: nothing that a later piece takes back, however the text was cut."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loreloop.text.tools.call_buffer import CallBuffer
from loreloop.text.tools.tool_calls import Broken, Call, CallArguments, CallBegins, CallCut, CallEnds, Content, Piece
from loreloop.text.tools.tool_formats import HERMES, QWEN3_CODER, ToolFormat
from loreloop.text.tools.tool_reader import ReplyReader
from tests.text.test_tool_reader import ANYWHERE, HERMES_TEXT, SHREDS

GOOD = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
BAD = '<tool_call>{"name": "f", "arguments": {"a": ]}}</tool_call>'


def told(form: ToolFormat, parts: list[str], *, at_once: bool) -> list[Piece]:
    reader, settled = ReplyReader(form, thinking=False, tools_allowed=True), CallBuffer(at_once=at_once)
    pieces = [piece for part in parts for piece in settled.settle(reader.push(part))]
    return pieces + settled.settle(reader.flush())


def arguments(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces if isinstance(piece, CallArguments))


def test_a_free_call_is_told_when_it_is_whole() -> None:
    whole = [CallBegins(0, None, "f"), CallArguments(0, '{"a": 1}'), CallEnds(0)]
    assert told(HERMES, [*GOOD], at_once=False) == whole
    second = [CallBegins(1, None, "f"), CallArguments(1, '{"a": 1}'), CallEnds(1)]
    assert told(HERMES, [GOOD, BAD, GOOD], at_once=False) == [*whole, Broken(BAD), *second]


def test_a_call_by_a_grammar_is_told_while_it_is_written() -> None:
    pieces = told(HERMES, [*GOOD], at_once=True)
    assert sum(isinstance(piece, CallArguments) for piece in pieces) == len('{"a": 1}')
    assert arguments(pieces) == '{"a": 1}'


def test_what_follows_a_call_that_broke_is_told_as_text() -> None:
    pieces = told(HERMES, ["So ", BAD, GOOD], at_once=True)
    begun = [Content("So"), CallBegins(0, None, "f"), CallArguments(0, '{"a": ')]
    assert pieces[:5] == [*begun, CallCut(0), Broken("]}}</tool_call>")]
    assert pieces[5:] == [CallBegins(1, None, "f"), CallArguments(1, '{"a": 1}'), CallEnds(1)]


@pytest.mark.parametrize("form", SHREDS, ids=lambda form: form.name)
def test_a_call_that_is_cut_off_is_told_as_far_as_it_came(form: ToolFormat) -> None:
    text, wanted = form.written([Call("weather", '{"city": "Paris", "days": "3"}')]), '{"city": "Paris", "days": "3"}'
    lengths = set()
    for end in range(text.index("weather") + 1, len(text) - len(form.section[1]) + 1):
        pieces = told(form, [*text[:end]], at_once=True)
        assert wanted.startswith(arguments(pieces))
        if any(isinstance(piece, CallBegins) for piece in pieces):
            assert isinstance(pieces[-1], CallCut | CallEnds)
            assert not any(isinstance(piece, Broken) for piece in pieces)
            lengths.add(len(arguments(pieces)))
        assert isinstance(pieces[-1], CallEnds) <= (arguments(pieces) == wanted)
    assert len(lengths) >= (4 if form is QWEN3_CODER else 20)


@pytest.mark.parametrize("form", SHREDS, ids=lambda form: form.name)
@given(data=st.data())
def test_nothing_is_told_twice_or_taken_back(form: ToolFormat, data: st.DataObject) -> None:
    text = "".join(data.draw(st.lists(st.sampled_from(SHREDS[form] + ANYWHERE), max_size=12)))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))))
    parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    for at_once in (False, True):
        open_call, n_calls, found = False, 0, ""
        for piece in told(form, parts, at_once=at_once):
            assert open_call == isinstance(piece, CallArguments | CallEnds | CallCut)
            if isinstance(piece, CallBegins):
                assert piece.index == n_calls
                open_call, found = True, ""
            elif isinstance(piece, CallArguments):
                found += piece.text
            elif isinstance(piece, CallEnds | CallCut):
                assert isinstance(piece, CallCut) or isinstance(json.loads(found), dict)
                open_call, n_calls = False, n_calls + 1
            assert at_once or not isinstance(piece, CallCut)
        assert not open_call


def test_calls_of_a_long_reply_stay_cheap() -> None:
    assert arguments(told(HERMES, [HERMES_TEXT * 2000], at_once=True)) == '{"city": "Paris"}' * 2000

"""Replies with tool calls, in the forms that models were published with, cut anywhere."""

import json
import time
from collections.abc import Iterable
from dataclasses import replace
from itertools import groupby
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from loreloop.text.tools.tool_calls import (
    Broken,
    Call,
    CallArguments,
    CallBegins,
    CallEnds,
    Content,
    Piece,
    Thinking,
    Tool,
)
from loreloop.text.tools.tool_formats import (
    DEEPSEEK,
    DEEPSEEK_V31,
    HERMES,
    KIMI_K2,
    LLAMA3,
    MISTRAL,
    MISTRAL_LIST,
    QWEN3_CODER,
    ToolFormat,
)
from loreloop.text.tools.tool_reader import ReplyReader

HERMES_TEXT = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
KIMI_TEXT = (
    "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>"
    '{"city": "Paris"}<|tool_call_end|><|tool_call_begin|>functions.time:1<|tool_call_argument_begin|>{}'
    "<|tool_call_end|><|tool_calls_section_end|>"
)
V3_TEXT = (
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n"
    '```json\n{"city": "Paris"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>time\n'
    "```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
)
V31_TEXT = (
    '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{"city": "Paris"}<｜tool▁call▁end｜>'
    "<｜tool▁call▁begin｜>time<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
)
LLAMA_TEXT = '{"name": "weather", "parameters": {"city": "Paris"}}'
BOTH = [("weather", '{"city": "Paris"}'), ("time", "{}")]


def read(form: ToolFormat, parts: Iterable[str], **settings: Any) -> list[Piece]:
    """The pieces, with neighbours of a kind put together."""
    reader = ReplyReader(form, **({"thinking": False, "tools_allowed": True} | settings))
    pieces = [piece for part in parts for piece in reader.push(part)] + reader.flush()
    joined: list[Piece] = []
    for (kind, *_), same in groupby(pieces, key=kind_of):
        first, *rest = same
        if kind in (Content, Thinking, CallArguments):
            first = replace(first, text="".join(piece.text for piece in (first, *rest)))
            rest = []
        joined += [first, *rest]
    return joined


def kind_of(piece: Piece) -> tuple[type[Piece], int]:
    return type(piece), getattr(piece, "index", 0)


def call(index: int, name: str, arguments: str, call_id: str | None = None) -> list[Piece]:
    return [CallBegins(index, call_id, name), CallArguments(index, arguments), CallEnds(index)]


def calls_of(pieces: list[Piece]) -> list[tuple[str, str]]:
    """Names and arguments of the calls that ended."""
    names = {piece.index: piece.name for piece in pieces if isinstance(piece, CallBegins)}
    texts = {piece.index: piece.text for piece in pieces if isinstance(piece, CallArguments)}
    return [(names[piece.index], texts[piece.index]) for piece in pieces if isinstance(piece, CallEnds)]


@pytest.mark.parametrize("form", [DEEPSEEK, DEEPSEEK_V31], ids=lambda form: form.name)
@pytest.mark.parametrize("text", [V3_TEXT, V31_TEXT])
def test_both_forms_of_deepseek(form: ToolFormat, text: str) -> None:
    pieces = read(form, ["I shall look.\n\n" + text])
    assert pieces == [Content("I shall look."), *call(0, *BOTH[0]), *call(1, *BOTH[1])]


def test_kimi_gives_ids() -> None:
    first, second = call(0, *BOTH[0], "functions.weather:0"), call(1, *BOTH[1], "functions.time:1")
    assert read(KIMI_K2, [KIMI_TEXT]) == [*first, *second]


def test_hermes_calls_stand_between_content() -> None:
    text = f"Both:\n{HERMES_TEXT}\n{HERMES_TEXT} then \n{HERMES_TEXT}\n\nDone. \n"
    calls = [call(n, *BOTH[0]) for n in range(3)]
    assert read(HERMES, [text]) == [
        *(Content("Both:"), *calls[0], *calls[1]),
        *(Content("then"), *calls[2], Content("Done. \n")),
    ]


@pytest.mark.parametrize(
    "text",
    [
        LLAMA_TEXT,
        "\n<|python_tag|>" + LLAMA_TEXT,
        '{"type": "function", "name": "weather", "parameters": {"city": "Paris"}}',
        '  { "name": "weather",\n"arguments": {"city": "Paris"} }',
    ],
)
def test_a_llama_message_begins_as_a_call(text: str) -> None:
    assert read(LLAMA3, [text]) == call(0, *BOTH[0])


@pytest.mark.parametrize("between", ["; ", "\n", ";\n", " ; "])
def test_llama_calls_are_separated(between: str) -> None:
    text = LLAMA_TEXT + between + LLAMA_TEXT + "\nThat is all."
    assert read(LLAMA3, [text]) == [*call(0, *BOTH[0]), *call(1, *BOTH[0]), Content("That is all.")]


@pytest.mark.parametrize("text", ["Say " + LLAMA_TEXT, '{"names": []}', '{"type": "object"}', '{"na', "<|python", " {"])
def test_other_llama_messages_are_content(text: str) -> None:
    assert read(LLAMA3, [text]) == [Content(text)]


def test_arguments_before_the_name_wait() -> None:
    reader = ReplyReader(HERMES, thinking=False, tools_allowed=True)
    assert reader.push('<tool_call>{"arguments": {"a": 1}, "name": "f"') == []
    assert reader.push("}</tool_call>") == call(0, "f", '{"a": 1}')


def test_arguments_stream() -> None:
    reader = ReplyReader(HERMES, thinking=False, tools_allowed=True)
    assert reader.push('Hm <tool_call>\n{"name": "wea') == [Content("Hm")]
    assert reader.push('ther", "arguments":') == []
    assert reader.push(' {"ci') == [CallBegins(0, None, "weather"), CallArguments(0, '{"ci')]
    assert reader.push('ty": "</tool_') == [CallArguments(0, 'ty": "</tool_')]
    assert reader.push('call>"}} ') == [CallArguments(0, 'call>"}')]
    assert reader.push("</tool_call>") == [CallEnds(0)]


def test_half_a_marker_is_held_back() -> None:
    reader = ReplyReader(HERMES, thinking=False, tools_allowed=True)
    assert reader.push("a \n<tool") == [Content("a")]
    assert reader.push("box> <tool_cal") == [Content(" \n<toolbox>")]
    assert reader.flush() == [Content(" <tool_cal")]


BROKEN = {
    "no json": (HERMES, "<tool_call>\nweather(Paris)\n</tool_call>", False),
    "xml": (HERMES, "<tool_call>\n<function=f>\n</function>\n</tool_call>", False),
    "unknown key": (HERMES, '<tool_call>{"name": "f", "args": {}}</tool_call>', False),
    "no arguments": (HERMES, '<tool_call>{"name": "f"}</tool_call>', False),
    "no name": (HERMES, '<tool_call>{"arguments": {}}</tool_call>', False),
    "empty name": (HERMES, '<tool_call>{"name": "", "arguments": {}}</tool_call>', False),
    "name is a number": (HERMES, '<tool_call>{"name": 1, "arguments": {}}</tool_call>', False),
    "endless name": (HERMES, '<tool_call>{"name": "' + "f" * 600 + '", "arguments": {}}</tool_call>', False),
    "name with a bad escape": (HERMES, '<tool_call>{"name": "\\x", "arguments": {}}</tool_call>', False),
    "name twice": (HERMES, '<tool_call>{"name": "f", "name": "g", "arguments": {}}</tool_call>', False),
    "arguments are a list": (HERMES, '<tool_call>{"name": "f", "arguments": []}</tool_call>', False),
    "arguments are a string": (HERMES, '<tool_call>{"name": "f", "arguments": "{}"}</tool_call>', False),
    "no value": (HERMES, '<tool_call>{"name": "f", "arguments": {"a": }}</tool_call>', True),
    "no number": (HERMES, '<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>', True),
    "endless number": (HERMES, '<tool_call>{"name": "f", "arguments": {"a": ' + "9" * 5000 + "}}</tool_call>", True),
    "brace missing": (HERMES, '<tool_call>{"name": "f", "arguments": {"a": 1}</tool_call>', True),
    "brackets crossed": (HERMES, '<tool_call>{"name": "f", "arguments": {"a": [}]}</tool_call>', True),
    "one brace more": (HERMES, '<tool_call>{"name": "f", "arguments": {}}}</tool_call>', True),
    "newline in a string": (HERMES, '<tool_call>{"name": "f", "arguments": {"a": "\n"}}</tool_call>', True),
    "too deep": (HERMES, '<tool_call>{"name": "f", "arguments": {"a": ' + "[" * 100_000 + "</tool_call>", True),
    "late name": (HERMES, '<tool_call>{"arguments": {}, "name": []}</tool_call>', False),
    "a word behind": (HERMES, '<tool_call>{"name": "f", "arguments": {}} ok</tool_call>', True),
    "kimi without number": (
        KIMI_K2,
        "<|tool_call_begin|>functions.f<|tool_call_argument_begin|>{}<|tool_call_end|>",
        False,
    ),
    "kimi without arguments": (KIMI_K2, "<|tool_call_begin|>functions.f:0<|tool_call_end|>", False),
    "kimi with a list": (
        KIMI_K2,
        "<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>[]<|tool_call_end|>",
        False,
    ),
    "deepseek with another type": (
        DEEPSEEK,
        "<｜tool▁call▁begin｜>code<｜tool▁sep｜>f\n```json\n{}\n```<｜tool▁call▁end｜>",
        False,
    ),
    "deepseek without fence": (
        DEEPSEEK,
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n{}\n<｜tool▁call▁end｜>",
        False,
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_call_comes_back_word_for_word(case: str) -> None:
    form, raw, begins = BROKEN[case]
    good = form.written([Call("g", "{}")])
    for parts in ([f"Hm. {raw} So.\n{good}"], list(f"Hm. {raw} So.\n{good}")):
        pieces = read(form, parts)
        assert [piece for piece in pieces if isinstance(piece, Broken)] == [Broken(raw)]
        assert (CallBegins(0, None, "f") in pieces) == begins
        assert calls_of(pieces) == [("g", "{}")]
        said = "".join(piece.text for piece in pieces if isinstance(piece, Content | Broken))
        assert said == f"Hm. {raw} So."


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "Alice", "age": 5}\nThat is she.',
        '{"name": "f", "parameters": {"a": [}} and more',
        '<|python_tag|>search.call(query="x")',
        '{"name": "f", "parameters": {"a',
    ],
)
def test_a_broken_message_comes_back_whole(text: str) -> None:
    for parts in ([text], list(text)):
        assert read(LLAMA3, parts)[-1] == Broken(text)
        assert calls_of(read(LLAMA3, parts)) == []


def test_calls_before_a_broken_one_count() -> None:
    broken = '{"name": "f", "parameters": 1} '
    assert read(LLAMA3, [LLAMA_TEXT, "; ", broken]) == [*call(0, *BOTH[0]), Broken(broken)]


@pytest.mark.parametrize("form", [HERMES, KIMI_K2, DEEPSEEK, DEEPSEEK_V31, LLAMA3], ids=lambda form: form.name)
def test_a_call_that_is_cut_off_is_broken(form: ToolFormat) -> None:
    text = form.written([Call("weather", '{"city": "Paris"}')])
    for end in range(text.index("weather"), text.index("}") - 1):
        pieces = read(form, [text[:end]])
        assert pieces[-1] == Broken(text[:end].removeprefix(form.section[0]))
        assert not calls_of(pieces)


@pytest.mark.parametrize("form", [HERMES, KIMI_K2, DEEPSEEK, DEEPSEEK_V31], ids=lambda form: form.name)
def test_a_call_whose_end_marker_is_cut_off_is_whole(form: ToolFormat) -> None:
    text = form.written([Call("weather", '{"city": "Paris"}')])
    whole = text.index("}") + (2 if form is HERMES else 1)
    for end in range(whole, len(text)):
        assert calls_of(read(form, [text[:end]])) == [("weather", '{"city": "Paris"}')]


def test_a_call_ends_before_the_next_one() -> None:
    pieces = read(HERMES, ['<tool_call>{"name": <tool_call>{"name": "f", "arguments": {}}</tool_call>'])
    assert pieces == [Broken('<tool_call>{"name": '), *call(0, "f", "{}")]


def test_thoughts_come_first_and_between() -> None:
    text = f"\n<think>\nWhat is <tool_call>?\n</think>\n\nI look.\n{HERMES_TEXT}\n<think>Rain</think>\nDone."
    pieces = [
        Thinking("What is <tool_call>?"),
        Content("I look."),
        *call(0, *BOTH[0]),
        Thinking("Rain"),
        Content("Done."),
    ]
    assert read(HERMES, [text], thinking=True) == pieces
    opened = text.removeprefix("\n<think>\n")
    assert read(HERMES, [opened], thinking=True, opened=True) == pieces
    assert read(HERMES, [text], thinking=True, opened=True) == pieces


def test_thoughts_before_a_llama_call() -> None:
    text = f"<think>Hm</think>\n\n{LLAMA_TEXT}"
    assert read(LLAMA3, [text], thinking=True) == [Thinking("Hm"), *call(0, *BOTH[0])]
    assert read(LLAMA3, ["<think>Hm</think>\n\nNo."], thinking=True) == [Thinking("Hm"), Content("No.")]
    between = f"{LLAMA_TEXT}\n<think>Hm</think>{LLAMA_TEXT}<think>So</think>No."
    calls = [call(number, *BOTH[0]) for number in range(2)]
    pieces = [*calls[0], Thinking("Hm"), *calls[1], Thinking("So"), Content("No.")]
    assert read(LLAMA3, [between], thinking=True) == read(LLAMA3, between, thinking=True) == pieces


@pytest.mark.parametrize(
    ("text", "settings", "pieces"),
    [
        ("<think>a</think>b", {}, [Content("<think>a</think>b")]),
        (" b</think>", {"thinking": True}, [Content(" b</think>")]),
        ("<think>\n\n</think>\n\nb", {"thinking": True}, [Content("b")]),
        ("<think>a</thin", {"thinking": True}, [Thinking("a</thin")]),
        ("a", {"thinking": True, "opened": True}, [Thinking("a")]),
        ("<thi", {"thinking": True}, [Content("<thi")]),
        ("x <think>a</think>", {"thinking": True}, [Content("x "), Thinking("a")]),
        ("x <think>a</think> y", {"thinking": True}, [Content("x "), Thinking("a"), Content("y")]),
        ("x<think>a</think> y", {"thinking": True}, [Content("x"), Thinking("a"), Content(" y")]),
        ("x <think>a", {"thinking": True, "tools_allowed": False}, [Content("x "), Thinking("a")]),
        (
            "a</think>x <think>b</think>y",
            {"thinking": True, "opened": True},
            [Thinking("a"), Content("x "), Thinking("b"), Content("y")],
        ),
        ("<think>a</think> <think>b</think>\n", {"thinking": True}, [Thinking("ab")]),
        (HERMES_TEXT, {"tools_allowed": False}, [Content(HERMES_TEXT)]),
        ("", {"thinking": True}, []),
    ],
)
def test_what_is_thought_and_what_is_said(text: str, settings: dict[str, bool], pieces: list[Piece]) -> None:
    for parts in ([text], list(text)):
        assert read(HERMES, parts, **settings) == pieces


SHREDS = {
    HERMES: ["<tool_call>", "</tool_call>", HERMES_TEXT, '{"name": "f", ', '"arguments": {"a": "b"}}', "<tool"],
    LLAMA3: [LLAMA_TEXT, "<|python_tag|>", ";", '{"name": "f", ', '"parameters": {"a": "\\n"}}', '{"type": "function"'],
    KIMI_K2: [*KIMI_K2.markers, KIMI_TEXT, "functions.f:0", '{"a": [1]}', "<|tool"],
    DEEPSEEK: [*DEEPSEEK.markers, V3_TEXT, V31_TEXT, "function", "f\n", "```json\n", "\n```", '{"a": {}}', "<｜"],
}
CODER_TEXT = (
    '<tool_call>\n<function=weather>\n<parameter=city>\nSão \n"Paulo"\n</parameter>\n</function>\n</tool_call>\n'
    "<tool_call>\n<function=time>\n<parameter=zone>\n-3\n</parameter>\n<parameter=days>\n[1, 2]\n</parameter>\n"
    "</function>\n</tool_call>"
)
MISTRAL_TEXT = '[TOOL_CALLS]weather[ARGS]{"city": "Oslo"}[TOOL_CALLS]time[CALL_ID]a1b2c3d4e[ARGS]{}'
LIST_TEXT = (
    '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Oslo"}, "id": "abc"}, {"name": "t", "arguments": {}}]'
)
TIME = {"type": "object", "properties": {"zone": {"type": ["integer", "null"]}, "days": {"type": "array"}}}
SHREDS |= {
    QWEN3_CODER: [
        "<tool_call>",
        "</tool_call>",
        CODER_TEXT,
        "<function=f>",
        "<parameter=a>",
        "</parameter>",
        "</function>",
    ],
    MISTRAL: [*MISTRAL.markers, MISTRAL_TEXT, "[CALL_ID]", "f", '{"a": [1]}', "[TOOL"],
    MISTRAL_LIST: ["[TOOL_CALLS]", LIST_TEXT, "[", "]", ", ", '{"name": "f", "arguments": {"a": 1}}', '"id": "x"'],
}
ANYWHERE = ["<think>", "</think>", " ", "\n", "word", "}", "{", '"', "\\", "é🐙"]


@pytest.mark.parametrize("form", SHREDS, ids=lambda form: form.name)
@given(data=st.data())
def test_cutting_makes_no_difference(form: ToolFormat, data: st.DataObject) -> None:
    text = "".join(data.draw(st.lists(st.sampled_from(SHREDS[form] + ANYWHERE), max_size=12)))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))))
    settings = {name: data.draw(st.booleans()) for name in ("thinking", "opened")}
    parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    pieces = read(form, parts, **settings)
    assert pieces == read(form, [text], **settings) == read(form, text, **settings)
    for _, arguments in calls_of(pieces):
        assert isinstance(json.loads(arguments), dict)


@pytest.mark.parametrize("form", SHREDS, ids=lambda form: form.name)
@given(
    calls=st.lists(
        st.tuples(
            st.from_regex(r"[a-z_]{1,9}", fullmatch=True), st.dictionaries(st.text(max_size=4), st.text(), max_size=3)
        ),
        min_size=1,
        max_size=4,
    ),
    size=st.integers(1, 9),
)
def test_what_is_written_is_read(form: ToolFormat, calls: list[tuple[str, dict[str, str]]], size: int) -> None:
    assume(form is not QWEN3_CODER or not any(set(key) & set("<>\n") for _, arguments in calls for key in arguments))
    wanted = [(name, json.dumps(arguments, ensure_ascii=False)) for name, arguments in calls]
    text = form.written([Call(*each) for each in wanted])
    pieces = read(form, [text[at : at + size] for at in range(0, len(text), size)])
    assert calls_of(pieces) == wanted
    assert not [piece for piece in pieces if isinstance(piece, Content | Broken)]


def test_coders_calls_are_read_by_the_schema() -> None:
    pieces = read(QWEN3_CODER, ["I look.\n", *CODER_TEXT], tools=[Tool("time", "", TIME)])
    assert pieces[0] == Content("I look.")
    assert [(name, json.loads(text)) for name, text in calls_of(pieces)] == [
        ("weather", {"city": 'São \n"Paulo"'}),
        ("time", {"zone": -3, "days": [1, 2]}),
    ]


@pytest.mark.parametrize("value", ['{"k": "\\ud800"}', "NaN", '{"k": -Infinity}', "1e999", "[" * 100_000])
def test_coders_values_that_cannot_be_passed_on_stay_texts(value: str) -> None:
    text = f"<tool_call>\n<function=f>\n<parameter=a>\n{value}\n</parameter>\n</function>\n</tool_call>"
    tool = Tool("f", "", {"properties": {"a": {"type": "object"}}})
    ((_, arguments),) = calls_of(read(QWEN3_CODER, [text], tools=[tool]))
    assert json.loads(arguments.encode()) == {"a": value}


def test_mistrals_calls_are_read_in_both_forms() -> None:
    pieces = read(MISTRAL, ["I look.", *MISTRAL_TEXT])
    assert calls_of(pieces) == [("weather", '{"city": "Oslo"}'), ("time", "{}")]
    assert [piece.call_id for piece in pieces if isinstance(piece, CallBegins)] == [None, "a1b2c3d4e"]
    assert pieces[0] == Content("I look.")
    for parts in ([LIST_TEXT], list(LIST_TEXT)):
        assert calls_of(read(MISTRAL_LIST, parts)) == [("weather", '{"city": "Oslo"}'), ("t", "{}")]
    broken = read(MISTRAL_LIST, [LIST_TEXT[:-5]])
    assert calls_of(broken) == [("weather", '{"city": "Oslo"}')]
    assert broken[-1] == Broken(', {"name": "t", "arguments":')


@pytest.mark.timed
@pytest.mark.parametrize(("unit", "size"), [('"</tool_call>\\n", ', 16), ('{"a": [1, 2]}, ', 10_000_000)])
def test_ten_megabytes_take_seconds(unit: str, size: int) -> None:
    arguments = '{"a": [' + unit * (10_000_000 // len(unit)) + "0]}"
    text = '<tool_call>{"name": "f", "arguments": ' + arguments + "}</tool_call>"
    begin = time.perf_counter()
    pieces = read(HERMES, [text[at : at + size] for at in range(0, len(text), size)])
    assert calls_of(pieces) == [("f", arguments)]
    assert time.perf_counter() - begin < 20


@pytest.mark.timed
@pytest.mark.parametrize(
    "text", ["\n" * 1_000_000, "<tool_call" * 100_000, HERMES_TEXT * 10_000, "<tool_call>" * 50_000]
)
def test_long_replies_of_any_kind_take_seconds(text: str) -> None:
    for size in (7, len(text)):
        reader = ReplyReader(HERMES, thinking=True, tools_allowed=True)
        begin = time.perf_counter()
        for at in range(0, len(text), size):
            reader.push(text[at : at + size])
        reader.flush()
        assert time.perf_counter() - begin < 20

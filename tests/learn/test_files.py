"""Files of examples: what the readers make of OpenAI's and TRL's lines, and how they refuse the others."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loreloop.learn.files import READERS, BadLine, demonstrations, has_pictures, marks, preferences, read_file, tasks
from loreloop.protocol.errors import BadRequest
from loreloop.text.conversation import Turn

USER = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "yo"}
CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo=", "detail": "low"}}
CHAT: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "be short"},
        USER,
        {"role": "assistant", "content": None, "tool_calls": [CALL], "weight": 0},
        {"role": "tool", "tool_call_id": "a", "content": "2"},
        {**ANSWER, "weight": 1},
    ],
    "tools": [TOOL],
    "parallel_tool_calls": False,
}
COMPARED = {
    "input": {"messages": [USER], "tools": [], "parallel_tool_calls": True},
    "preferred_output": [ANSWER],
    "non_preferred_output": [{**ANSWER, "content": "no"}],
}
LINES: dict[str, list[dict[str, Any]]] = {
    "sft": [CHAT, {"messages": [USER, ANSWER]}],
    "dpo": [
        COMPARED,
        {"prompt": "hi", "chosen": "yo", "rejected": "no"},
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [{**ANSWER, "content": "no"}], "tools": [TOOL]},
    ],
    "kto": [
        {"prompt": "hi", "completion": "yo", "label": True},
        {"prompt": [USER], "completion": [ANSWER], "label": False},
    ],
    "reinforcement": [{"messages": [USER], "reference": 3, "more": {"deep": [1]}}],
}


def told(line: Any, read: Any = demonstrations) -> str:
    """What is said of a line behind a good one."""
    good = LINES[next(name for name, reader in READERS.items() if reader is read)][0]
    text = line if isinstance(line, bytes) else json.dumps(line).encode()
    with pytest.raises(BadLine) as caught:
        list(read([json.dumps(good), b"\n", text]))
    assert caught.value.line == 3
    assert caught.value.message.startswith(f"Line 3: {caught.value.field}")
    return caught.value.message.removeprefix("Line 3: ")


def test_a_chat_with_tools_and_weights() -> None:
    (found,) = demonstrations([json.dumps(CHAT)])
    assert [turn.role for turn in found.conversation.turns] == ["system", "user", "assistant", "tool", "assistant"]
    assert found.weights == (1, 1, 0, 1, 1)
    assert found.conversation.turns[2].calls[0].arguments == '{"x": 1}'
    assert [tool.name for tool in found.conversation.tools] == ["f"]


def test_preferences_in_all_their_forms() -> None:
    for line in LINES["dpo"]:
        (found,) = preferences([json.dumps(line)])
        assert [turn.content for turn in found.prompt.turns] == ["hi"]
        assert [turn.content for c in (found.chosen, found.rejected) for turn in c.turns] == ["yo", "no"]
    shared = {"chosen": [USER, ANSWER], "rejected": [USER, {**ANSWER, "content": "no"}]}
    assert [*preferences([json.dumps(shared)])] == [*preferences([json.dumps(LINES["dpo"][1])])]


def test_marks_and_tasks() -> None:
    assert [mark.wanted for mark in marks(json.dumps(line) for line in LINES["kto"])] == [True, False]
    (task,) = tasks([json.dumps(LINES["reinforcement"][0])])
    assert task.prompt.turns == (Turn("user", "hi"),)
    assert task.item["reference"] == 3
    assert task.item["more"] == {"deep": [1]}


def test_images_stand_in_the_file() -> None:
    line = {"messages": [{"role": "user", "content": [{"type": "text", "text": "what?"}, PICTURE]}, ANSWER]}
    (found,) = demonstrations([json.dumps(line)])
    assert has_pictures(found.conversation)
    line["messages"][0]["content"][1] = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    assert told(line).startswith("messages[0].content[1].image_url.url is")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            {"messages": [USER, ANSWER, {"role": "robot", "content": "x"}]},
            'messages[2].role is "robot"; here it is one of',
        ),
        ({"messages": [USER, {"role": "assistant", "content": 5}]}, "messages[1].content is 5: expected"),
        (
            {"messages": [USER, {**ANSWER, "content": [{"type": "text", "text": "a"}, {"type": "text", "text": 5}]}]},
            "messages[1].content[1].text is 5: expected",
        ),
        (
            {"messages": [USER, {"role": "assistant", "contents": "a"}]},
            "messages[1].contents is not known here; leave it out.",
        ),
        ({"messages": [USER, {"content": "a"}]}, "messages[1].role is missing."),
        ({"messages": [USER, {"role": "assistant"}]}, "messages[1].content is empty, and there are no tool_calls"),
        ({"messages": []}, "messages is []: expected"),
        ({"messages": [USER]}, "messages hold no answer of the assistant"),
        ({"messages": [USER, {**ANSWER, "weight": 0}]}, "messages hold no answer of the assistant"),
        ({"messages": [USER, {**ANSWER, "weight": 2}]}, "messages[1].weight is 2: expected"),
        ({"messages": [{**USER, "weight": 1}, ANSWER]}, "messages[0].weight is given for the role user"),
        ({"messages": [USER, ANSWER], "functions": []}, "functions is not known here"),
        ({}, "messages is missing."),
        ([], "holds []; a JSON object belongs there."),
        (b"{", "is not JSON: "),
        (b"\xff\xfe{}", "is not JSON: "),
        (b"[" * 5000, "is nested too deeply."),
        (b'{"messages": [{"role": "user"}], "messages": []}', "messages stands twice in one object."),
        (b'{"messages": [{"role": "user", "content": "a", "role": "assistant"}]}', "role stands twice in one object."),
        (
            {"messages": [USER, {**ANSWER, "tool_calls": [CALL, {**CALL, "type": "fun"}]}]},
            'messages[1].tool_calls[1].type is "fun"',
        ),
        (
            {"messages": [USER, {**ANSWER, "tool_calls": [{**CALL, "function": {"name": "f", "arguments": "{"}}]}]},
            'messages[1].tool_calls[0].function.arguments is "{"; the text of a JSON object',
        ),
        (
            {**CHAT, "messages": [*CHAT["messages"], {"role": "tool", "content": "3"}]},
            "messages[5].tool_call_id is missing",
        ),
        (
            {"messages": [USER, {"role": "tool", "content": "3", "tool_call_id": "z"}, ANSWER]},
            'messages[1].tool_call_id is "z", which no call before it has.',
        ),
        (
            {"messages": [USER, {**ANSWER, "tool_calls": [CALL, {**CALL, "id": "b"}]}], "parallel_tool_calls": False},
            "messages[1].tool_calls are several",
        ),
        (
            {"messages": [USER, ANSWER], "tools": [TOOL, {"type": "mcp"}]},
            'tools[1].type is "mcp"; here it is one of function.',
        ),
    ],
    ids=str,
)
def test_what_is_wrong_with_a_chat_is_told_with_line_and_field(line: Any, words: str) -> None:
    assert told(line).startswith(words)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"prompt": "a", "chosen": "b"}, "rejected is missing."),
        ({"input": {"messages": [USER]}, "preferred_output": [ANSWER]}, "non_preferred_output is missing."),
        ({**COMPARED, "preferred_output": [USER]}, 'preferred_output[0].role is "user"; the last must be assistant.'),
        ({"chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}, "rejected is the same as `chosen`"),
        ({"chosen": [USER, ANSWER], "rejected": [ANSWER]}, "prompt is missing, and"),
        ({**COMPARED, "input": {"messages": [{"role": "robot"}]}}, 'input.messages[0].role is "robot"'),
    ],
    ids=str,
)
def test_what_is_wrong_with_a_preference(line: Any, words: str) -> None:
    assert told(line, preferences).startswith(words)


def test_what_is_wrong_with_marks_and_tasks() -> None:
    assert told({"prompt": "a", "completion": "b", "label": 1}, marks).startswith("label is 1: expected `bool`")
    assert told({"messages": [USER, ANSWER], "x": 1}, tasks).startswith('messages[1].role is "assistant"')


def test_files_are_read_whole_or_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "chats.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(CHAT).encode() + b"\r\n\n" + json.dumps(CHAT).encode())
    assert len(read_file(file, demonstrations)) == 2
    file.write_text("\n")
    with pytest.raises(BadRequest, match="holds no examples"):
        read_file(file, demonstrations)
    with pytest.raises(BadRequest, match="cannot be read"):
        read_file(tmp_path / "none.jsonl", demonstrations)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 2)
    | st.floats(allow_nan=False)
    | st.sampled_from(["", "user", "a", "text"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "messages", "x"]), inner)
    ),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to everything in a value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for name, entry in inner for place in places(entry, (*path, name)))]


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copied = dict(value) if isinstance(value, dict) else list(value)
    copied[path[0]] = changed(value[path[0]], path[1:], new)
    return copied


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_a_line_with_anything_anywhere_is_read_or_refused(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(LINES)))
    line = data.draw(st.sampled_from(LINES[name]))
    place = data.draw(st.sampled_from(places(line)))
    mutant = changed(line, place, data.draw(JSON))
    try:
        assert len(list(READERS[name]([json.dumps(mutant)]))) == 1
    except BadLine as error:
        refused = error
    else:
        return
    assert refused.line == 1
    assert "[...]" not in refused.message

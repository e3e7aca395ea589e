"""Edits of the context as clients of Anthropic ask for them: what changes nothing passes, others do what they say."""

from typing import Any

import pytest

from loreloop.http.anthropic import context_edits
from loreloop.http.generation.chat import prompt_length
from loreloop.http.generation.requests import Model
from loreloop.text.conversation import Conversation
from tests.http.scripted import MESSAGES, Script, play_script

KEEP_ALL = {"type": "clear_thinking_20251015", "keep": "all"}
CALLS: list[dict[str, Any]] = [{"role": "user", "content": "go"}]
for number in range(5):
    said = [
        {"type": "thinking", "thinking": f"thought{number}", "signature": ""},
        {"type": "tool_use", "id": f"t{number}", "name": "g" if number == 0 else "f", "input": {"x": number}},
    ]
    result = {"type": "tool_result", "tool_use_id": f"t{number}", "content": f"result{number}"}
    CALLS += [{"role": "assistant", "content": said}, {"role": "user", "content": [result]}]
OLD_THOUGHT = [
    {"role": "user", "content": "first"},
    {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm0", "signature": ""}]},
    {"role": "user", "content": "second"},
    {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm1", "signature": ""}]},
    {"role": "user", "content": "third"},
]


async def edited(script: Script, messages: list[dict[str, Any]], *edits: dict[str, Any]) -> tuple[str, Any]:
    """The prompt, and what the answer tells of the edits."""
    answer = await script.whole(MESSAGES, "Hi.", messages=messages, context_management={"edits": edits})
    return script.prompt(), answer["context_management"]["applied_edits"]


def test_an_edit_that_keeps_everything_changes_nothing() -> None:
    async def scene(script: Script) -> None:
        await script.whole(MESSAGES, "Hi.", messages=CALLS)
        plain = script.prompt()
        late = {"type": "clear_tool_uses_20250919", "trigger": {"type": "tool_uses", "value": 5}}
        for edit in (KEEP_ALL, {"type": "clear_thinking_20251015", "keep": {"type": "all"}}, late):
            assert await edited(script, CALLS, edit) == (plain, [])
        assert await edited(script, CALLS, {"type": "compact_20260112"}) == (plain, [])
        assert await edited(script, CALLS, {"type": "clear_tool_uses_20250919"}) == (plain, [])

    play_script(scene)


def test_old_results_are_left_out() -> None:
    async def scene(script: Script) -> None:
        edit = {
            "type": "clear_tool_uses_20250919",
            "trigger": {"type": "tool_uses", "value": 2},
            "keep": {"type": "tool_uses", "value": 1},
            "exclude_tools": ["g"],
        }
        prompt, (applied,) = await edited(script, CALLS, edit)
        assert ["result" + str(n) in prompt for n in range(5)] == [True, False, False, False, True]
        assert applied["cleared_tool_uses"] == 3
        assert '"x": 1' in prompt
        prompt, _ = await edited(script, CALLS, edit | {"clear_tool_inputs": True})
        assert '"x": 1' not in prompt
        assert '"x": 4' in prompt
        often = {"clear_at_least": {"type": "input_tokens", "value": 100000}}
        assert (await edited(script, CALLS, edit | often))[1] == []

    play_script(scene)


def test_a_history_that_is_far_too_long_is_brought_back_into_the_window() -> None:
    async def scene(script: Script) -> None:
        long = [dict(message) for message in CALLS]
        much = "some words " * (3 * script.speaker.info.context_window)
        result = {"type": "tool_result", "tool_use_id": "t1", "content": much}
        long[4] = {"role": "user", "content": [result]}
        keep = {"type": "tool_uses", "value": 1}
        for trigger in ({"type": "tool_uses", "value": 2}, {"type": "input_tokens", "value": 100_000}):
            edit = {"type": "clear_tool_uses_20250919", "trigger": trigger, "keep": keep}
            prompt, (applied,) = await edited(script, long, edit)
            assert ("some words" in prompt, "result4" in prompt) == (False, True)
            assert applied["cleared_input_tokens"] > script.speaker.info.context_window
        await script.ask(MESSAGES, "Hi.", 400, messages=long)

    play_script(scene)


def test_however_many_edits_a_prompt_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []

    async def count(model: Model, conversation: Conversation) -> int:
        counted.append(await prompt_length(model, conversation))
        return counted[-1]

    async def scene(script: Script) -> None:
        monkeypatch.setattr(context_edits, "prompt_length", count)
        never = {"type": "clear_tool_uses_20250919", "trigger": {"type": "input_tokens", "value": 100_000}}
        assert (await edited(script, CALLS, *[never] * 16))[1] == []
        assert len(counted) == 1

    play_script(scene)


def test_old_thoughts_are_left_out() -> None:
    async def scene(script: Script) -> None:
        everything, none = await edited(script, OLD_THOUGHT, KEEP_ALL)
        prompt, (applied,) = await edited(script, OLD_THOUGHT, {"type": "clear_thinking_20251015"})
        assert (applied["type"], applied["cleared_thinking_turns"]) == ("clear_thinking_20251015", 1)
        assert ("hm0" in everything, "hm0" in prompt, none) == (True, False, [])
        assert "hm1" in prompt
        counted = await script.site.client.post(
            f"http://site{MESSAGES}/count_tokens",
            json={
                "model": "fake",
                "messages": OLD_THOUGHT,
                "context_management": {"edits": [{"type": applied["type"]}]},
            },
        )
        said = counted.json()
        assert said["context_management"]["original_input_tokens"] > said["input_tokens"]

    play_script(scene)


@pytest.mark.parametrize("stream", [False, True])
def test_what_would_change_something_unserved_is_refused_by_name(stream: bool) -> None:
    async def scene(script: Script) -> None:
        edit = {"type": "compact_20260112", "trigger": {"type": "input_tokens", "value": 1}}
        asked = {"messages": CALLS, "stream": stream}
        answer = await script.ask(MESSAGES, "Hi.", 400, **asked, context_management={"edits": [edit]})
        assert "compact_20260112" in answer.text
        unknown = {"edits": [{"type": "clear_everything"}]}
        answer = await script.ask(MESSAGES, "Hi.", 400, **asked, context_management=unknown)
        assert "clear_thinking_20251015, clear_tool_uses_20250919" in answer.text

    play_script(scene)

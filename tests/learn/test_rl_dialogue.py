"""Several turns as one row: where a template tells the past as it was, it is the prompt of the longer conversation."""

import asyncio
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from loreloop.learn.rollouts.dialogue import Dialogue
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.openai_rest import ToolBody
from loreloop.text.conversation import Conversation, MadeCall, Turn
from loreloop.text.openai_messages import tool_of
from tests.learn.test_rendering import OPENING, THINKING, TOOL, of_template
from tests.tiny import CHAT_TEMPLATE

ASKED = Conversation((Turn("user", "what is it?"),))
CALL = MadeCall("call_1", "add", '{"a": 1}')
# As Llama's: an answer that calls is told by its calls alone, and ends with the same token.
CALLS_ALONE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m.tool_calls %}{% for c in m.tool_calls %}"
    '{"name": "{{ c.function.name }}", "parameters": {{ c.function.arguments | tojson }}}{% endfor %}'
    "{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}{# tools #}{% if tools %}{% endif %}"
)


def dialogue(folder: Path, template: str) -> Dialogue:
    return Dialogue(of_template(folder / "text", template))


def text(made: Dialogue, tokens: list[int]) -> str:
    return made.renderer.tokenizer.decode(tokens)


def test_what_is_shown_makes_the_prompt_of_the_longer_conversation(tmp_path: Path) -> None:
    made = dialogue(tmp_path, CHAT_TEMPLATE)
    answer = [*made.renderer.tokenizer.encode("it is 12"), made.stop[0]]
    said = made.answer(answer, ASKED, ended=True)
    after = replace(ASKED, turns=(*ASKED.turns, Turn("assistant", said.text)))
    shown = made.behind(after, [Turn("user", "and 34?")], ended=True)
    longer = replace(after, turns=(*after.turns, Turn("user", "and 34?")))
    begun, whole = (asyncio.run(made.prompt(each)).to_ints() for each in (ASKED, longer))
    assert [*begun, *answer, *shown] == whole


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, THINKING, OPENING, CALLS_ALONE])
def test_only_what_is_new_comes_behind_an_answer(tmp_path: Path, template: str) -> None:
    made = dialogue(tmp_path, template)
    tool = tool_of(msgspec.convert(TOOL, ToolBody))
    after = Conversation((*ASKED.turns, Turn("assistant", "", "a thought", (CALL,))), (tool,))
    shown = text(made, made.behind(after, [Turn("tool", "it is 3", call_id="call_1")], ended=True))
    assert shown.startswith("\n<|im_start|>")
    assert "it is 3" in shown
    assert shown.rstrip().endswith(("assistant", "<think>"))
    assert not {"what is it?", "a thought", "add"} & {
        word for word in ("what is it?", "a thought", "add") if word in shown
    }


def test_an_answer_that_was_cut_off_is_ended_first(tmp_path: Path) -> None:
    made = dialogue(tmp_path, CHAT_TEMPLATE)
    after = Conversation((*ASKED.turns, Turn("assistant", "it is")))
    whole, cut = (made.behind(after, [Turn("user", "go on")], ended=ended) for ended in (True, False))
    assert cut == [made.stop[0], *whole]


def test_a_template_without_ends_is_refused(tmp_path: Path) -> None:
    made = dialogue(tmp_path, "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}")
    after = Conversation((*ASKED.turns, Turn("assistant", "12")))
    with pytest.raises(BadRequest, match="tasks of one answer"):
        made.behind(after, [Turn("user", "go on")], ended=True)


def test_answers_held_to_a_form_begin_behind_the_thought(tmp_path: Path) -> None:
    made = dialogue(tmp_path, OPENING)
    closed = Dialogue(made.renderer.without_thoughts())
    prompt = text(closed, asyncio.run(closed.prompt(ASKED)).to_ints())
    assert prompt == text(made, asyncio.run(made.prompt(ASKED)).to_ints()) + "\n</think>\n\n"
    said = closed.answer(closed.renderer.tokenizer.encode('{"n": 1}'), ASKED, ended=True)
    assert (said.text, said.thinking) == ('{"n": 1}', None)
    after = replace(ASKED, turns=(*ASKED.turns, Turn("assistant", said.text)))
    assert text(closed, closed.behind(after, [Turn("user", "more")], ended=True)).endswith("</think>\n\n")

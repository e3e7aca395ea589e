"""Earlier calls in the words of the template, whatever it takes them as; as text where it writes none."""

import time
from pathlib import Path

import pytest

from loreloop.protocol.errors import BadRequest
from loreloop.text.conversation import Conversation, MadeCall, Turn, habits_of, prompt_text
from loreloop.text.templates.chat_template import ChatTemplate
from loreloop.text.tokenizer import TextTokenizer
from loreloop.text.tools.tool_calls import Tool
from tests.tiny import make_tokenizer

TOOL = Tool("f", "finds", {"type": "object"})
CALL = MadeCall("callnum01", "f", '{"word": "é"}')
HISTORY = (Turn("user", "ask"), Turn("assistant", calls=(CALL,)), Turn("tool", "rain", call_id="callnum01"))
LOOP = "{% for m in messages %}"
TOLD = "{% if tools %}{{ tools | tojson }}{% endif %}"

# What each template makes of the call and its result. The first three never read `tools`, as DeepSeek's V3 and R1.
NATIVE = {
    "joins texts": (
        LOOP + "{% for c in m.tool_calls %}[{{ c.function.name + c.function.arguments }}]{% endfor %}"
        "{{ m.role[0] + ':' + m.content + ' ' }}{% endfor %}",
        'u:ask [f{"word": "é"}]a: t:rain ',
    ),
    "asks for none": (
        LOOP + "{% if m.content is none %}{% for c in m.tool_calls %}[{{ c.function.arguments['word'] }}]{% endfor %}"
        "{% else %}{{ m.content }} {% endif %}{% endfor %}",
        "ask [é]rain ",
    ),
    "writes ids": (
        LOOP + "{% for c in m.tool_calls or [] %}{{ c.id }}{{ c.function.arguments | tojson }}{% endfor %}"
        "{{ m.content }} {% endfor %}",
        'ask callnum01{"word": "é"} rain ',
    ),
    "wants names": (
        TOLD + LOOP + "{% if m.role == 'tool' and m.name is not defined %}{{ raise_exception('a name') }}{% endif %}"
        "{% for c in m.tool_calls %}{{ c.function.arguments | tojson }}{% endfor %}{{ m.name }}:{{ m.content }} "
        "{% endfor %}",
        ':ask {"word": "é"}: f:rain ',
    ),
}


def template(folder: Path, source: str) -> ChatTemplate:
    make_tokenizer(folder, 300)
    (folder / "chat_template.jinja").write_text(source)
    return ChatTemplate(folder, TextTokenizer(folder))


@pytest.mark.parametrize("name", NATIVE)
def test_a_template_writes_calls_its_own_way(tmp_path: Path, name: str) -> None:
    source, text = NATIVE[name]
    assert prompt_text(template(tmp_path, source), Conversation(HISTORY)) == text


def test_tools_are_told_also_where_only_calls_are_known(tmp_path: Path) -> None:
    source, text = NATIVE["joins texts"]
    told = prompt_text(template(tmp_path, source), Conversation(HISTORY, (TOOL,)))
    assert told.startswith("s:You can call functions.")
    assert told.endswith(text)


def test_a_template_without_calls_sees_text(tmp_path: Path) -> None:
    plain = prompt_text(template(tmp_path, LOOP + "{{ m.role }}: {{ m.content }}\n{% endfor %}"), Conversation(HISTORY))
    assert "assistant: <tool_call>" in plain
    assert "user: <tool_response>\nrain" in plain
    assert "tool:" not in plain


@pytest.mark.timed
def test_a_template_made_to_hurt_is_not_tried_for_long(tmp_path: Path) -> None:
    forever = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    hostile = template(tmp_path, TOLD + LOOP + "{% if m.tool_calls %}" + forever + "{% endif %}{% endfor %}")
    started = time.monotonic()
    with pytest.raises(BadRequest):
        prompt_text(hostile, Conversation(HISTORY))
    assert time.monotonic() - started < 6
    assert not habits_of(hostile).writes_calls  # and not again

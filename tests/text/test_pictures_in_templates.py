"""Conversations with pictures as models' own templates show them: parts in order, marks where images go."""

import json

import pytest

from loreloop.protocol.training import ImageChunk
from loreloop.text.conversation import Conversation, MadeCall, Picture, Turn, prompt_text, turn_of_parts
from loreloop.text.templates.chat_template import ChatTemplate
from loreloop.text.tokenizer import TextTokenizer
from loreloop.text.tools.tool_calls import Tool
from tests.tiny import make_tokenizer
from tests.tiny_vision import CHAT_TEMPLATE

# Reads contents as lists only, images first, as LLaVA's published template does.
LISTS_ONLY = (
    "{% for m in messages %}{{ m.role }}: "
    "{% for part in m.content | selectattr('type', 'equalto', 'image') %}<image>{% endfor %}"
    "{% for part in m.content | selectattr('type', 'equalto', 'text') %}{{ part.text }}{% endfor %};{% endfor %}"
)
PICTURE = Picture("data:,", ImageChunk(b"", "png"))
TURN = turn_of_parts("user", ["a ", PICTURE, " b", PICTURE])
MARK = "<|vision_start|><|image_pad|><|vision_end|>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    make_tokenizer(folder, 512)
    (folder / "preprocessor_config.json").write_text("{}")
    return folder


def shown(folder, template: str, *turns: Turn, tools=()) -> str:
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    made = ChatTemplate(folder, TextTokenizer(folder))
    return prompt_text(made, Conversation(turns, tools))


def test_parts_stand_in_order(folder):
    assert f"user\na {MARK} b{MARK}<|im_end|>" in shown(folder, CHAT_TEMPLATE, TURN)


def test_texts_alone_stay_texts(folder):
    turn = turn_of_parts("user", ["a ", "b"])
    assert (turn.content, turn.parts) == ("a b", ())
    assert "user\na b<|im_end|>" in shown(folder, CHAT_TEMPLATE, turn)


def test_a_template_that_reads_lists_only_gets_lists(folder):
    assert shown(folder, LISTS_ONLY, Turn("system", "be kind"), TURN) == "system: be kind;user: <image><image>a  b;"


def test_what_is_written_around_pictures_stays_around_them(folder):
    tool = Tool("look", "", {"type": "object", "properties": {}}, False)
    call = MadeCall("c", "look", "{}")
    turns = (
        turn_of_parts("system", ["see ", PICTURE]),
        Turn("assistant", calls=(call,)),
        turn_of_parts("tool", [PICTURE], call_id="c"),
    )
    text = shown(folder, CHAT_TEMPLATE, *turns, tools=(tool,))
    assert f"system\nsee {MARK}\n\n" in text
    assert f"<tool_response>\n{MARK}\n</tool_response>" in text

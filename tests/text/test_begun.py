"""An answer that has begun: its words end the prompt, behind a thought that the template opened."""

from pathlib import Path

import pytest

from loreloop.text.conversation import Conversation, Turn, prompt_text
from loreloop.text.templates.chat_template import ChatTemplate
from loreloop.text.tokenizer import TextTokenizer
from tests.tiny import make_tokenizer

TURNS = (Turn("user", "hi"),)
KNOWS = "<a>' }}{# <think> #}{{ '"  # of thinking, but leaves it to the model to begin


@pytest.mark.parametrize(
    ("generation", "thought", "begun", "end"),
    [
        ("<a>", "", "", "<a>"),
        ("<a>", "", "I am", "<a>I am"),
        ("<a><think>\\n", "", "I am", "<a><think>\n\n</think>\n\nI am"),
        ("<a><think>", "", "I am", "<a><think>\n\n</think>\n\nI am"),
        ("<a><think>\\n", "", "", "<a><think>\n"),
        ("<a>", "Hm.", "I am", "<a>I am"),  # a model that does not think
        ("<a><think>\\n", "Hm.", "I am", "<a><think>\nHm.\n</think>\n\nI am"),
        ("<a><think>", "Hm.", "", "<a><think>\nHm.\n</think>\n\n"),
        (KNOWS, "Hm.", "I am", "<a><think>\nHm.\n</think>\n\nI am"),
        (KNOWS, "", "I am", "<a>I am"),
        ("<a><think>\\n\\n</think>\\n\\n", "Hm.", "I am", "<a><think>\n\n</think>\n\nI am"),
    ],
)
def test_it_ends_the_prompt(tmp_path: Path, generation: str, thought: str, begun: str, end: str) -> None:
    make_tokenizer(tmp_path, 300)
    source = f"{{% for m in messages %}}{{{{ m.content }}}}{{% endfor %}}{{{{ '{generation}' }}}}"
    (tmp_path / "chat_template.jinja").write_text(source)
    template = ChatTemplate(tmp_path, TextTokenizer(tmp_path))
    assert prompt_text(template, Conversation(TURNS, begun=begun, thought=thought)) == f"hi{end}"

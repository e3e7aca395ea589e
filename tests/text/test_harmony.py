"""Replies of gpt-oss: channels become thoughts, answers and calls, however the text is cut."""

import itertools
import json
from random import Random

import pytest
from tokenizers import Tokenizer

from loreloop.text.replies import ReplyRules, read_whole
from loreloop.text.tokenizer import TextTokenizer
from loreloop.text.tools.harmony import MARKERS, HarmonyReader
from loreloop.text.tools.tool_calls import Broken, Call, CallArguments, CallBegins, CallEnds, Content, Thinking, Tool
from loreloop.text.tools.tool_formats import HARMONY, format_of
from tests.tiny import make_tokenizer

ANSWER = "<|channel|>analysis<|message|>I think.<|end|><|start|>assistant<|channel|>final<|message|>It is 4.<|return|>"
CALL = (
    "<|channel|>analysis<|message|>Look.<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather "
    '<|constrain|>json<|message|>{"city": "Oslo"}<|call|>'
)
RECIPIENT_FIRST = (
    "<|channel|>commentary<|message|>I will look.<|end|><|start|>assistant to=functions.f<|channel|>commentary json"
    "<|message|>{}<|call|>"
)
TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}{# <|channel|> #}"
)


def told(pieces):
    """Pieces put together: (thoughts, content, calls, broken)."""
    thoughts = "".join(piece.text for piece in pieces if isinstance(piece, Thinking))
    content = "".join(piece.text for piece in pieces if isinstance(piece, Content))
    calls = [[piece.name, ""] for piece in pieces if isinstance(piece, CallBegins)]
    for piece in pieces:
        if isinstance(piece, CallArguments):
            calls[piece.index][1] += piece.text
    ended = sum(isinstance(piece, CallEnds) for piece in pieces)
    return thoughts, content, calls, ended, [piece.text for piece in pieces if isinstance(piece, Broken)]


def read(text, *, tools_allowed=True, cuts=()):
    reader, pieces = HarmonyReader(tools_allowed=tools_allowed), []
    edges = [0, *sorted(cuts), len(text)]
    for start, stop in itertools.pairwise(edges):
        pieces += reader.push(text[start:stop])
    return told([*pieces, *reader.flush()])


EXPECTED = {
    ANSWER: ("I think.", "It is 4.", [], 0, []),
    CALL: ("Look.", "", [["get_weather", '{"city": "Oslo"}']], 1, []),
    RECIPIENT_FIRST: ("", "I will look.", [["f", "{}"]], 1, []),
    ANSWER.removesuffix("<|return|>"): ("I think.", "It is 4.", [], 0, []),
    CALL.removesuffix("<|call|>"): ("Look.", "", [["get_weather", '{"city": "Oslo"}']], 1, []),
    CALL[:-11]: ("Look.", "", [["get_weather", '{"city": "Osl']], 0, ['{"city": "Osl']),
    "plain words": ("", "plain words", [], 0, []),
    "<|channel|>ana": ("", "", [], 0, []),
    "": ("", "", [], 0, []),
}


@pytest.mark.parametrize("text", EXPECTED)
def test_a_reply_is_read_the_same_whole_and_cut_anywhere(text):
    assert read(text) == EXPECTED[text]
    for cut in range(len(text)):
        assert read(text, cuts=[cut]) == EXPECTED[text]
    assert read(text, cuts=range(len(text))) == EXPECTED[text]


def test_any_text_is_read_without_an_error_and_cuts_make_no_difference():
    random = Random(0)
    parts = [*MARKERS, "analysis", "final", " to=functions.f", '{"a": 1}', "x", " ", "<|", "assistant"]
    for _ in range(300):
        text = "".join(random.choice(parts) for _ in range(random.randint(0, 12)))
        cuts = sorted(random.randint(0, len(text)) for _ in range(3))
        assert read(text) == read(text, cuts=cuts)


def test_without_tools_what_is_for_a_function_is_content():
    assert read(CALL, tools_allowed=False) == ("Look.", '{"city": "Oslo"}', [], 0, [])


def test_thoughts_of_two_messages_stay_apart():
    twice = ANSWER.split("<|start|>")[0] + "<|start|>assistant" + ANSWER
    assert read(twice)[0] == "I think.\n\nI think."


def test_the_template_shows_the_format():
    assert format_of(TEMPLATE) is HARMONY


def test_what_is_written_for_a_call_is_read_as_that_call():
    calls = [Call("f", '{"a": 1}'), Call("g", "{}")]
    written = HARMONY.written(calls[:1])
    assert read(written)[2] == [["f", '{"a": 1}']]


def test_tokens_of_a_reply_become_its_parts(tmp_path):
    """Markers are special tokens, which a reader of tokens must see all the same; the last ends the sample."""
    make_tokenizer(tmp_path, 512, MARKERS, TEMPLATE)
    tokenizer = TextTokenizer(tmp_path)
    ids = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(CALL, add_special_tokens=False).ids
    rules = ReplyRules(
        tokenizer=tokenizer,
        form=HARMONY,
        thinking=False,
        opened=False,
        tools=(Tool("get_weather", "", {"type": "object"}),),
        stop_tokens=ids[-1:],
    )
    whole = read_whole(rules.begin(), ids)
    assert (whole.thinking, whole.content, whole.warning) == ("Look.", "", None)
    assert [(call.name, json.loads(call.arguments)) for call in whole.calls] == [("get_weather", {"city": "Oslo"})]

"""Conversations as tokens: prompts are those of the chat route, and only the assistant's own tokens are learned."""

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from loreloop.config import Config
from loreloop.learn.examples import Demonstration
from loreloop.learn.rendering import Renderer, Weighted, renderer_of
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.openai_rest import ChatMessage, ToolBody
from loreloop.protocol.token_ids import unpack_ids
from loreloop.text.conversation import Conversation, MadeCall, Turn
from loreloop.text.openai_messages import tool_of, turn_of
from tests.http.site import site
from tests.http.test_published_templates import TEMPLATES
from tests.learn.runs import said, shown
from tests.tiny import CHAT_TEMPLATE, make_tokenizer

DEFAULT_MODEL = Path.home() / ".local/share/loreloop/models/smollm2-135m"
# As Qwen's do: tools in the system text, calls in tags, thoughts of past questions dropped, of the last answer shown.
THINKING = (
    "{%- if tools %}<|im_start|>system\n<tools>{% for t in tools %}{{ t | tojson }}{% endfor %}</tools>"
    '<tool_call>{"name": …}</tool_call><|im_end|>\n{% endif %}'
    "{%- for m in messages %}<|im_start|>{{ m.role }}\n"
    "{%- if m.role == 'assistant' and loop.last %}<think>\n{{ m.reasoning_content or '' }}\n</think>\n\n{% endif %}"
    "{{- m.content or '' }}{% for c in m.tool_calls or [] %}\n<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}'
    "<|im_end|>\n{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n"
    "{%- if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# As DeepSeek's do: the prompt begins the thought, and answers are told without it.
OPENING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
CALL = MadeCall("c1", "add", '{"a": 1, "b": 2}')
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


def of_template(folder: Path, template: str) -> Renderer:
    folder.mkdir(exist_ok=True)
    make_tokenizer(folder, 400, template=template)
    return renderer_of(folder)


@pytest.fixture(scope="module", params=["plain", "thinking", "opening"])
def renderer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    template = {"plain": CHAT_TEMPLATE, "thinking": THINKING, "opening": OPENING}[request.param]
    return of_template(tmp_path_factory.mktemp("text"), template)


def learned(renderer: Renderer, weighted: Weighted) -> str:
    return renderer.tokenizer.decode([t for t, w in zip(weighted.tokens, weighted.weights, strict=True) if w])


@contextlib.contextmanager
def asked(folder: Path) -> Iterator[Any]:
    """What gives the prompt's tokens that the chat route would have sampled from, for a body."""

    def tokens_of(**body: Any) -> list[int]:
        async def go() -> list[int]:
            async with site(Config(), lambda place: make_like(place, folder)) as here:
                await here.start_engine()
                ops, sample = [], here.services.dispatcher.sample
                here.services.dispatcher.sample = lambda op, base: (ops.append(op), sample(op, base))[1]
                reply = await here.client.post("http://site/v1/chat/completions", json={"model": "fake", **body})
                assert reply.status_code == 200, reply.text
                return [token for chunk in ops[0].prompt for token in unpack_ids(chunk.tokens).tolist()]

        return asyncio.run(go())

    yield tokens_of


def make_like(place: Path, folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (place / name).write_bytes((folder / name).read_bytes())


MESSAGES: list[dict[str, Any]] = [
    {"role": "developer", "content": "Add."},
    {"role": "user", "content": [{"type": "text", "text": "what is 1 and 2?"}]},
    {
        "role": "assistant",
        "content": None,
        "reasoning_content": "hm",
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "3"},
    {"role": "assistant", "content": "it is 3"},
    {"role": "user", "content": "and\n\nthen?"},
]


@pytest.mark.parametrize("until", [2, 4, 6])
@pytest.mark.parametrize("tools", [[], [TOOL]], ids=["no tools", "tools"])
def test_a_prompt_is_that_of_the_chat_route(renderer: Renderer, tools: list[Any], until: int) -> None:
    turns = tuple(turn_of(message) for message in msgspec.convert(MESSAGES[:until], list[ChatMessage]))
    conversation = Conversation(turns, tuple(tool_of(tool) for tool in msgspec.convert(tools, list[ToolBody])))
    with asked(renderer.template.folder) as tokens_of:
        body = {"messages": MESSAGES[:until], "max_tokens": 1} | ({"tools": tools} if tools else {})
        assert renderer.prompt(conversation).to_ints() == tokens_of(**body)


def test_a_prompt_for_a_form_is_that_of_the_chat_route(renderer: Renderer) -> None:
    held = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "integer"}}}
    with asked(renderer.template.folder) as tokens_of:
        tokens = tokens_of(messages=[{"role": "user", "content": "hello"}], max_tokens=1, response_format=held)
    assert renderer.without_thoughts().prompt(said("hello")).to_ints() == tokens


def test_only_the_answers_are_learned_with_their_end(tmp_path: Path) -> None:
    renderer = of_template(tmp_path, CHAT_TEMPLATE)
    (weighted,) = renderer.weighted(shown("hello", "fox", "again", "dog"))
    assert learned(renderer, weighted) == "fox<|im_end|>dog<|im_end|>"
    (datum,) = renderer.demonstrations(shown("hello", "fox", "again", "dog"))
    inputs, weights = datum.model_input.to_ints(), datum.loss_fn_inputs["weights"].to_numpy()
    targets = datum.loss_fn_inputs["target_tokens"].to_numpy().tolist()
    assert [*inputs, targets[-1]] == weighted.tokens
    assert renderer.tokenizer.decode([t for t, w in zip(targets, weights, strict=True) if w]).endswith("<|im_end|>")


def test_turns_without_weight_are_read_only(tmp_path: Path) -> None:
    renderer = of_template(tmp_path, CHAT_TEMPLATE)
    talk = said("hello", "fox", "again", "dog")
    (weighted,) = renderer.weighted(Demonstration(talk, (1, 0, 1, 0.5)))
    assert learned(renderer, weighted) == "dog<|im_end|>"
    assert {w for w in weighted.weights if w} == {0.5}
    assert renderer.weighted(Demonstration(talk, (1, 0, 1, 0))) == []


def test_a_template_that_drops_thoughts_makes_a_datum_for_each_answer(tmp_path: Path) -> None:
    renderer = of_template(tmp_path, THINKING)
    turns = (Turn("user", "hello"), Turn("assistant", "fox", "hm"), Turn("user", "again"), Turn("assistant", "dog"))
    first, second = renderer.weighted(Demonstration(Conversation(turns), (0, 1, 0, 1)))
    assert learned(renderer, first) == "<think>\nhm\n</think>\n\nfox<|im_end|>"
    assert learned(renderer, second) == "<think>\n\n</think>\n\ndog<|im_end|>"
    assert "hm" not in renderer.tokenizer.decode(second.tokens)


def test_a_thought_that_the_prompt_begins_is_ended_by_the_answer(tmp_path: Path) -> None:
    renderer = of_template(tmp_path, OPENING)
    turns = (Turn("user", "hello"), Turn("assistant", "fox", "hm"))
    (weighted,) = renderer.weighted(Demonstration(Conversation(turns), (0, 1)))
    assert learned(renderer, weighted) == "hm\n</think>\n\nfox<|im_end|>"
    answer = renderer.answer([t for t, w in zip(weighted.tokens, weighted.weights, strict=True) if w], said("hello"))
    assert (answer.text, answer.thinking, answer.ended) == ("fox", "hm", True)


def test_an_answer_is_learned_up_to_where_sampling_would_stop(tmp_path: Path) -> None:
    renderer = of_template(tmp_path, CHAT_TEMPLATE.replace("<|im_end|>\n", "<|im_end|><|endoftext|>\n"))
    renderer.stop[:] = [2, 0]  # <|im_end|> and <|endoftext|>
    (weighted,) = renderer.weighted(shown("hello", "fox", "again", "dog"))
    assert learned(renderer, weighted) == "fox<|im_end|>dog<|im_end|>"


def test_a_thought_that_is_turned_off_is_not_learned(tmp_path: Path) -> None:
    renderer = of_template(tmp_path, THINKING)
    talk = Conversation(said("hello", "fox").turns, settings={"enable_thinking": False})
    (weighted,) = renderer.weighted(Demonstration(talk, (0, 1)))
    assert learned(renderer, weighted) == "fox<|im_end|>"
    assert renderer.tokenizer.decode(weighted.tokens).count("<think>") == 1


def test_calls_are_learned_and_read_back(renderer: Renderer) -> None:
    tools = (tool_of(msgspec.convert(TOOL, ToolBody)),)
    talk = Conversation((Turn("user", "1 and 2?"), Turn("assistant", calls=(CALL,))), tools)
    (weighted,) = renderer.weighted(Demonstration(talk, (0, 1)))
    tokens = [t for t, w in zip(weighted.tokens, weighted.weights, strict=True) if w]
    answer = renderer.answer(tokens, Conversation(talk.turns[:1], tools))
    assert [(call.name, call.arguments) for call in answer.calls] == [(CALL.name, CALL.arguments)]
    assert (answer.text, answer.ended, answer.n_tokens) == ("", True, len(tokens))
    assert not renderer.answer(tokens[:-1], Conversation(talk.turns[:1], tools)).ended


def test_a_template_whose_answers_cannot_be_told_is_refused(tmp_path: Path) -> None:
    odd = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}Now answer:{% endif %}"
    with pytest.raises(BadRequest, match="cannot be told apart"):
        of_template(tmp_path, odd).weighted(shown("hello", "fox"))


def test_white_space_may_differ_between_what_is_asked_and_what_is_told(tmp_path: Path) -> None:
    spaced = (
        "{% for m in messages %}<|im_start|>{{ m.role }}{% if m.role == 'user' %}  {% endif %}{{ m.content }}<|im_end|>"
        "{% endfor %}{% if add_generation_prompt %} <|im_start|>assistant {% endif %}"
    )
    renderer = of_template(tmp_path, spaced)
    first, second = renderer.weighted(shown("hello", "fox", "again", "dog"))
    assert [learned(renderer, each) for each in (first, second)] == ["fox<|im_end|>", "dog<|im_end|>"]


TEXTS = st.text(st.sampled_from("the fox\n<é☃"), max_size=12)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3))
def test_what_is_learned_stands_behind_the_prompt_that_would_be_asked(
    renderer: Renderer, talk: list[tuple[str, str]]
) -> None:
    texts = [text for pair in talk for text in pair]
    conversation = said(*texts)
    found = renderer.weighted(Demonstration(conversation, (1.0,) * len(texts)))
    prompts = [
        renderer.prompt_tokens(Conversation(conversation.turns[:n])) for n in range(1, len(conversation.turns), 2)
    ]
    for prompt in prompts:
        # Some datum has the prompt's very tokens, none of the last piece of it learned, and learns what follows.
        begun = [w for w in found if w.tokens[: len(prompt)] == prompt and w.weights[len(prompt)] == 1]
        assert begun
        assert all(w.weights[len(prompt) - 1] == 0 and w.tokens[-1] in renderer.stop for w in begun)


def same_as_transformers(folder: Path, texts: list[str]) -> None:
    renderer, theirs = renderer_of(folder), AutoTokenizer.from_pretrained(folder)
    messages = [{"role": turn.role, "content": turn.content} for turn in said(*texts).turns]
    (weighted,) = renderer.weighted(shown(*texts))
    whole = theirs.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert weighted.tokens == whole[: len(weighted.tokens)]
    assert theirs.decode(whole[len(weighted.tokens) :]).strip() == ""
    prompt = theirs.apply_chat_template(messages[:-1], add_generation_prompt=True, tokenize=True, return_dict=False)
    assert renderer.prompt(said(*texts[:-1])).to_ints() == prompt


def test_tokens_are_those_of_transformers(tiny_folder: Path) -> None:
    same_as_transformers(tiny_folder, ["what is it?", "it is 12", "and 34?", "the lazy dog"])


@pytest.mark.skipif(not DEFAULT_MODEL.exists(), reason="the default model is not on this machine")
def test_tokens_are_those_of_transformers_for_the_default_model() -> None:
    same_as_transformers(DEFAULT_MODEL, ["What is 2 + 2?", "2 + 2 = 4.", "Été ☃?", "Yes:\n\n- one\n- two"])


@pytest.mark.slow
@pytest.mark.parametrize("name", TEMPLATES)
def test_published_templates_are_learned_from_or_refused(tmp_path: Path, name: str) -> None:
    """Of whatever a template tells only answers are learned, and all that they say."""
    renderer = of_template(tmp_path, TEMPLATES[name])
    said_first, said_last = "the quick fox", "a lazy dog"
    turns = (
        Turn("user", "hello"),
        Turn("assistant", said_first, "hm"),
        Turn("user", "again"),
        Turn("assistant", said_last),
    )
    try:
        found = "".join(learned(renderer, w) for w in renderer.weighted(Demonstration(Conversation(turns), (1,) * 4)))
    except BadRequest as error:
        assert "cannot be told apart" in error.message or "does not accept" in error.message  # noqa: PT017
        return
    assert said_first in found
    assert said_last in found
    assert "hello" not in found
    assert "again" not in found

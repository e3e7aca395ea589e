"""Chat templates as `transformers` renders them, and without trust in what they hold."""

import json
import resource
import time
from pathlib import Path
from random import Random

import pytest
from transformers import AutoTokenizer

from loreloop.protocol.errors import BadRequest
from loreloop.text.conversation import Conversation, MadeCall, Turn, prompt_text
from loreloop.text.templates.chat_template import ChatTemplate
from loreloop.text.tokenizer import TextTokenizer
from tests.tiny import make_tokenizer

CHAT = [
    {"role": "system", "content": "Answer with the number only."},
    {"role": "user", "content": '  3 + 4 <b>"é"</b>?\n'},
    {"role": "assistant", "content": "7"},
]
TEMPLATES = {
    "loop": "{% for m in messages %}{{ m.role }}: {{ m['content'] | trim }}\n{% endfor %}",
    "specials": "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}",
    "prompt": "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "blocks": "{% for m in messages %}\n    {% if loop.first %}\n    {{ m.content }}\n    {% endif %}\n{% endfor %}\n",
    "json": "{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}",
    "namespace": "{% set n = namespace(k=0) %}{% for m in messages %}{% set n.k = n.k + 1 %}{% endfor %}{{ n.k }}",
    "defined": "{% if tools is defined and tools %}tools{% endif %}{% if not documents %}none{% endif %}",
}
# What published templates use besides, and transformers has.
MORE_TEMPLATES = {
    "break": "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "none": "{% if tools is not none %}with tools{% else %}without{% endif %}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "json settings": "{{ messages | tojson(ensure_ascii=False, sort_keys=True) }}",
}


def chat(folder: Path, template: str | None) -> ChatTemplate:
    make_tokenizer(folder, 300)
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text()) | {"chat_template": template}
    file.write_text(json.dumps({key: value for key, value in settings.items() if value is not None}))
    return ChatTemplate(folder, TextTokenizer(folder))


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("name", [*TEMPLATES, *MORE_TEMPLATES])
def test_templates_render_as_in_transformers(tmp_path: Path, name: str, add_generation_prompt: bool) -> None:
    template = (TEMPLATES | MORE_TEMPLATES)[name]
    ours = chat(tmp_path, template).render(CHAT, add_generation_prompt=add_generation_prompt)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    settings = {"add_generation_prompt": add_generation_prompt, "tokenize": False}
    assert ours == theirs.apply_chat_template(CHAT, **settings)


def test_the_tiny_models_own_template(tiny_folder: Path) -> None:
    ours = ChatTemplate(tiny_folder, TextTokenizer(tiny_folder)).render(CHAT)
    theirs = AutoTokenizer.from_pretrained(tiny_folder)
    assert ours == theirs.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)


def test_a_template_file_comes_before_the_settings(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("from the file")
    assert chat(tmp_path, "from the settings").render(CHAT) == "from the file"


def test_the_default_of_several_templates_is_taken(tmp_path: Path) -> None:
    several = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    assert chat(tmp_path, several).render(CHAT) == "plain"  # type: ignore[arg-type]


def test_a_model_without_template_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="no chat template; use completions"):
        chat(tmp_path, None).render(CHAT)


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ messages[9].content }}",
    ],
)
def test_a_template_can_refuse_and_cannot_escape(tmp_path: Path, template: str) -> None:
    with pytest.raises(BadRequest, match="does not accept these messages"):
        chat(tmp_path, template).render(CHAT)


def test_a_broken_template_leaves_completions_usable(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="template"):
        chat(tmp_path, "{% for m in messages %}").render(CHAT)


HOSTILE = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "recursion": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "doubling": "{% set n = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "a product": "{{ ('a' * 10000000000) | length }}",
    "a power": "{{ 9 ** 999999999 }}",
    "a wide field": "{{ '%99999999999d' % 1 }}",
}


@pytest.mark.timed
@pytest.mark.parametrize("name", HOSTILE)
def test_a_template_made_to_hurt_is_bounded(tmp_path: Path, name: str) -> None:
    started = time.monotonic()
    with pytest.raises(BadRequest):
        chat(tmp_path, HOSTILE[name]).render(CHAT)
    assert time.monotonic() - started < 6
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY


def random_conversation(random: Random) -> list[dict[str, object]]:
    texts = [
        "",
        " ",
        "hello",
        "été ☃ 😀",
        "<|im_end|>",
        "line\nline\n",
        '{"a": [1, null]}',
        "<think>x</think>y",
        "\t  x",
    ]
    messages: list[dict[str, object]] = []
    if random.random() < 0.5:
        messages.append({"role": "system", "content": random.choice(texts)})
    for number in range(random.randint(1, 6)):
        messages.append({"role": "user", "content": random.choice(texts)})
        assistant: dict[str, object] = {"role": "assistant", "content": random.choice(texts)}
        if random.random() < 0.3:
            assistant["reasoning_content"] = random.choice(texts)
        if random.random() < 0.4:
            arguments = {"city": random.choice(texts), "n": number, "deep": {"x": [True, 1.5]}}
            call = {"id": f"c{number}", "type": "function", "function": {"name": "f", "arguments": arguments}}
            messages += [
                assistant | {"tool_calls": [call]},
                {"role": "tool", "content": "42", "tool_call_id": f"c{number}"},
            ]
        messages.append(assistant)
    return messages


TOOL_TEMPLATE = """{%- if tools %}<|im_start|>system
{%- if messages[0].role == 'system' %}{{ messages[0].content + '\\n\\n' }}{% endif %}
{%- for tool in tools %}{{ "\\n" }}{{ tool | tojson }}{% endfor %}<|im_end|>
{% endif %}
{%- set ns = namespace(last=messages|length - 1) %}
{%- for message in messages[::-1] %}{% set i = messages|length - 1 - loop.index0 %}
{%- if message.role == 'user' and message.content is string %}{% set ns.last = i %}{% break %}{% endif %}{% endfor %}
{%- for message in messages %}
{%- set content = message.content if message.content is string else '' %}
{%- if message.role == 'assistant' %}<|im_start|>assistant
{% if message.reasoning_content is string %}<think>
{{ message.reasoning_content.strip('\\n') }}
</think>

{% elif '</think>' in content %}{{ content.split('</think>')[-1].lstrip('\\n') }}{% endif %}{{ content | trim }}
{%- for call in message.tool_calls or [] %}{% set call = call.function or call %}
<tool_call>
{"name": "{{ call.name }}", "arguments": {{ call.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% elif message.role == 'tool' %}<|im_start|>user
<tool_response>{{ content }}</tool_response><|im_end|>
{% else %}<|im_start|>{{ message.role }}
{{ content }}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think>

</think>

{% endif %}{% endif %}"""
TOOLS = [{"type": "function", "function": {"name": "f", "description": "é", "parameters": {"type": "object"}}}]


@pytest.mark.numbers
def test_two_hundred_conversations_are_rendered_token_for_token(tmp_path: Path) -> None:
    ours = chat(tmp_path, TOOL_TEMPLATE)
    theirs, tokenizer = AutoTokenizer.from_pretrained(tmp_path), TextTokenizer(tmp_path)
    for seed in range(200):
        random = Random(seed)
        messages, settings = random_conversation(random), {}
        if random.random() < 0.3:
            settings["enable_thinking"] = random.random() < 0.5
        tools = random.choice([None, TOOLS])
        expected = theirs.apply_chat_template(
            messages, tools=tools, add_generation_prompt=True, tokenize=True, return_dict=False, **settings
        )
        assert tokenizer.encode(ours.render(messages, tools=tools, **settings)) == expected, seed


@pytest.mark.parametrize("arguments", [r'{"a": "\ud800"}', "{broken", "5", "[" * 5000])
@pytest.mark.parametrize("source", ["{{ messages[0].tool_calls | tojson }}{{ tools }}", "{{ messages[0].content }}"])
def test_earlier_calls_may_be_broken(tmp_path: Path, arguments: str, source: str) -> None:
    make_tokenizer(tmp_path, 300)
    (tmp_path / "chat_template.jinja").write_text(source)
    tokenizer = TextTokenizer(tmp_path)
    turn = Turn("assistant", calls=(MadeCall("1", "f", arguments),))
    text = prompt_text(ChatTemplate(tmp_path, tokenizer), Conversation((turn,)))
    assert arguments in text.replace("\\\\", "\\").replace('\\"', '"')
    assert tokenizer.encode(text)

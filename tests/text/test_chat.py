"""Chat templates as `transformers` renders them, and without trust in what they hold."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from loreloop.protocol.errors import BadRequest
from loreloop.text.chat import ChatTemplate
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

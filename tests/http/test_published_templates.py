"""Published chat templates, from a request's body to the prompt: as `transformers` renders them.

The templates stand in packages that `make test-slow` downloads: those of trl and axolotl as files, those of xinference
in its table of models. Their families range from DeepSeek, GLM, Kimi, Llama, MiniMax and Mistral to Qwen.
"""

import json
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
from transformers import AutoTokenizer

from loreloop.http.openai.chat_format import chat_request_of
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.openai_rest import ChatCompletion
from loreloop.text.conversation import prompt_text
from loreloop.text.templates.chat_template import ChatTemplate
from loreloop.text.tokenizer import TextTokenizer
from loreloop.text.tools.tool_calls import Tool
from loreloop.text.tools.tool_formats import format_of, knows_tools
from tests.tiny import make_tokenizer

PACKAGES = Path(__file__).parents[2] / ".cache" / "newest" / "templates"
N_CONVERSATIONS = 200
TOOLS = [
    Tool("f", "é", {"type": "object", "properties": {"city": {"type": "string"}, "mark": {"type": "string"}}}),
    Tool("g", "takes nothing", {"type": "object", "properties": {}}),
]
WRONG = (
    "None",
    "null",
    "{'city'",
    '"{\\"city',
    "'type': 'text'",
    '"type": "text"',
)  # signs of a spelling that is not meant
TEXTS = ["", "hello", "été ☃ 😀", "line\nline\n", '{"a": [1, 2.5]}', "\t  x"]

Messages = list[dict[str, Any]]


def published() -> dict[str, str]:
    """Templates by package and name, equal ones once."""
    found: dict[str, str] = {}
    for wheel in sorted(PACKAGES.glob("*.whl")):
        with zipfile.ZipFile(wheel) as files:
            for file in sorted(files.namelist()):
                for name, template in templates_of(file, files):
                    if template not in found.values():
                        found[f"{wheel.name.partition('-')[0]}-{name}"] = template
    return found


def templates_of(file: str, files: zipfile.ZipFile) -> Iterator[tuple[str, str]]:
    if "chat_templates/" in file and file.endswith(".jinja"):
        yield Path(file).stem, files.read(file).decode()
    elif "model/llm/models/" in file and file.endswith(".json"):
        models = json.loads(files.read(file))
        for model in models if isinstance(models, list) else [models]:
            if template := model.get("chat_template"):
                yield model["model_name"], template


TEMPLATES = published()


def conversation(random: Random) -> Messages:
    """Questions and calls are numbered, so that one sees which of them a template shows."""
    messages: Messages = [{"role": "system", "content": random.choice(TEXTS)}] if random.random() < 0.5 else []
    for number in range(random.randint(1, 4)):
        asked = random.choice(TEXTS) + (f" question{number}" if random.random() < 0.8 else "")
        messages.append({"role": "user", "content": asked})
        answer: dict[str, Any] = {"role": "assistant", "content": random.choice(TEXTS)}
        if random.random() < 0.3:
            answer["reasoning_content"] = random.choice(TEXTS[1:])
        if random.random() < 0.5:
            calls = [called(random, f"{number}{at}") for at in range(random.choice([1, 1, 2]))]
            content = None if random.random() < 0.5 else answer["content"]
            messages.append({**answer, "content": content, "tool_calls": calls})
            messages += [{"role": "tool", "content": "42", "tool_call_id": call["id"]} for call in calls]
        messages.append(answer)
    if random.random() < 0.5:  # the last question, or a call's result, waits for its answer
        return [*messages[:-1]] if messages[-2]["role"] != "assistant" else messages
    return [*messages, {"role": "user", "content": "and now?"}]


def called(random: Random, number: str) -> dict[str, Any]:
    function = {"name": "f", "arguments": {"city": random.choice(TEXTS), "mark": f"mark{number}"}}
    return {"id": f"callnum{number}", "type": "function", "function": function}


def rewritten(messages: Messages, **changes: Any) -> Messages:
    """Another spelling of the same: `arguments` in place of the objects, contents, names of results."""
    spelled = [dict(message) for message in messages]
    for message in spelled:
        if message.get("tool_calls"):
            if changes.get("as_text"):
                message["tool_calls"] = [with_text(call) for call in message["tool_calls"]]
            if "empty" in changes and not message["content"]:
                message["content"] = changes["empty"]
        if changes.get("parts"):
            message["content"] = [{"type": "text", "text": message["content"] or ""}]
        if message["role"] == "tool" and changes.get("names"):
            message["name"] = "f"
    return spelled


def with_text(call: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps(call["function"]["arguments"], ensure_ascii=False)
    return {**call, "function": {**call["function"], "arguments": text}}


SPELLINGS: list[dict[str, Any]] = [
    {"as_text": as_text, **more}
    for more in ({}, {"empty": ""}, {"empty": None}, {"names": True}, {"parts": True})
    for as_text in (False, True)
]


@dataclass
class Reference:
    """What `transformers` makes of the spelling that a template reads best; of equals, of the one nearest to the body:
    no word `None` for an empty content, no Python for arguments, no question or call left out."""

    tokenizer: Any
    source: str

    def prompt(self, messages: Messages, tools: Sequence[Tool]) -> str | None:
        """None where the template refuses every spelling."""
        texts = [text for how in SPELLINGS if (text := self.rendered(rewritten(messages, **how), tools)) is not None]
        return min(texts, key=lambda text: self.faults(text, messages), default=None)

    def faults(self, text: str, messages: Messages) -> int:
        said = [(message["content"] or "").strip() for message in messages]
        said += [call["function"]["arguments"]["mark"] for m in messages for call in m.get("tool_calls", [])]
        return 100 * sum(text.count(word) for word in WRONG) - sum(part in text for part in said)

    def rendered(self, messages: Messages, tools: Sequence[Tool]) -> str | None:
        functions = [tool.as_function() for tool in tools] or None
        settings = {"chat_template": self.source, "add_generation_prompt": True, "tokenize": False}
        try:
            return str(self.tokenizer.apply_chat_template(messages, tools=functions, **settings))
        except Exception:  # Jinja's, the template's own, and whatever its expressions raise
            return None


def as_told(messages: Messages, source: str) -> Messages:
    """Where a template reads no tools, they are told in the system's text."""
    told = format_of(source).instructions(TOOLS)
    if messages[0]["role"] == "system":
        return [{"role": "system", "content": f"{messages[0]['content']}\n\n{told}"}, *messages[1:]]
    return [{"role": "system", "content": told}, *messages]


def our_prompt(template: ChatTemplate, messages: Messages, tools: Sequence[Tool]) -> str | None:
    body = {"model": "m", "messages": rewritten(messages, as_text=True)}
    if tools:
        body["tools"] = [tool.as_function() for tool in tools]
    try:
        return prompt_text(template, chat_request_of(msgspec.convert(body, ChatCompletion)).conversation)
    except BadRequest:
        return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    make_tokenizer(folder, 300)
    return folder


@pytest.mark.slow
def test_many_templates_are_compared() -> None:
    if not PACKAGES.exists():
        pytest.skip("`make test-slow` downloads the packages that hold them")
    assert len(TEMPLATES) > 150
    assert {format_of(source).name for source in TEMPLATES.values()} > {"kimi_k2", "deepseek", "mistral_list", "llama3"}


@pytest.mark.slow
@pytest.mark.parametrize("name", TEMPLATES)
def test_prompts_are_those_of_transformers(folder: Path, name: str) -> None:
    source = TEMPLATES[name]
    (folder / "chat_template.jinja").write_text(source)
    reference = Reference(AutoTokenizer.from_pretrained(folder), source)
    ours = ChatTemplate(folder, TextTokenizer(folder))
    reads_tools = knows_tools(source)
    n_compared = 0
    for seed in range(N_CONVERSATIONS):
        random = Random(seed)
        messages, tools = conversation(random), random.choice([[], TOOLS])
        if not (reads_tools or "tool_calls" in source) and any("tool_calls" in message for message in messages):
            continue  # such a template sees calls as text
        asked = as_told(messages, source) if tools and not reads_tools else messages
        expected = reference.prompt(asked, tools if reads_tools else [])
        assert our_prompt(ours, messages, tools) == expected, f"seed {seed}"
        n_compared += expected is not None
    assert n_compared > 10

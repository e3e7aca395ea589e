"""A folder with odd files behind a real server: prompts, ends, templates and defaults are what the files say."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from loreloop.cli.serve import plan_of
from loreloop.cli.server import RunningServer, running_server
from loreloop.config import Config
from loreloop.protocol.errors import BadRequest
from tests.odd import form
from tests.tiny import CHAT_TEMPLATE, SPECIALS, make_tiny_model

BOS, END = SPECIALS[1], SPECIALS[2]
TOOLS = [{"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}]
TOOL_USE = "{% for tool in tools %}{{ tool.function.name }} {% endfor %}{{ messages[0].content }}" + BOS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_tiny_model(tmp_path_factory.mktemp("odd") / "odd", eos_token_id=0)
    (folder / "generation_config.json").write_text('{"do_sample": true, "top_k": 1, "temperature": 0.5}')
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": BOS, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {BOS: {"id": BOS, "ids": [1], "tokens": [BOS]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    named = [{"name": "default", "template": CHAT_TEMPLATE}, {"name": "tool_use", "template": TOOL_USE}]
    settings |= {"eos_token": {"__type": "AddedToken", **form(END)}, "chat_template": named}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def odd(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    data = tmp_path_factory.mktemp("data")
    (data / "models").mkdir()
    (data / "models" / "odd").symlink_to(folder)
    with running_server(str(data), ["--model", "odd", "--precision", "fp32", "--threads", "1"]) as running:
        yield running


def ask(odd: RunningServer, route: str, **body: Any) -> dict[str, Any]:
    headers = {"authorization": f"Bearer {odd.key}"}
    response = httpx.post(f"{odd.url}/v1/{route}", headers=headers, json={"model": "odd", **body}, timeout=60)
    assert response.status_code == 200, response.text
    return dict(response.json())


def test_a_text_prompt_gets_what_the_post_processor_adds(odd: RunningServer, folder: Path) -> None:
    text = "the quick fox"
    ids = AutoTokenizer.from_pretrained(folder)(text).input_ids
    with torch.no_grad():
        scores = AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([ids])).logits[0].log_softmax(-1)
    wanted = [float(scores[at, token]) for at, token in enumerate(ids[1:])]
    (choice,) = ask(odd, "completions", prompt=text, echo=True, logprobs=1, max_tokens=1)["choices"]
    told = choice["logprobs"]
    assert (ids[0], told["tokens"][0], told["token_logprobs"][0]) == (1, BOS, None)
    assert told["token_logprobs"][1 : len(ids)] == pytest.approx(wanted, abs=1e-4)
    assert choice["text"].startswith(text)  # what was sent comes back, without the mark before it
    places = zip(told["text_offset"][1 : len(ids)], told["tokens"][1 : len(ids)], strict=True)
    assert all(text[at:].startswith(token) for at, token in places)
    assert told["text_offset"][:2] == [0, 0]


def test_ids_are_taken_as_they_are(odd: RunningServer) -> None:
    assert ask(odd, "completions", prompt=[70, 71], max_tokens=1)["usage"]["prompt_tokens"] == 2


def test_every_end_that_a_file_names_ends_an_answer(odd: RunningServer) -> None:
    for end in (0, 2):
        body = {"messages": [{"role": "user", "content": "hi"}], "logit_bias": {str(end): 100}, "max_tokens": 20}
        answer = ask(odd, "chat/completions", **body)
        assert (answer["choices"][0]["finish_reason"], answer["usage"]["completion_tokens"]) == ("stop", 1)


def test_a_conversation_with_tools_has_their_template(odd: RunningServer, folder: Path) -> None:
    messages, theirs = [{"role": "user", "content": "what time"}], AutoTokenizer.from_pretrained(folder)
    for tools in (None, TOOLS):
        wanted = theirs.apply_chat_template(messages, tools=tools, add_generation_prompt=True, return_dict=False)
        answer = ask(odd, "chat/completions", messages=messages, max_tokens=1, **({"tools": tools} if tools else {}))
        assert answer["usage"]["prompt_tokens"] == len(wanted)


def test_what_a_request_leaves_open_is_the_models_own(odd: RunningServer) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 12}

    def answers(**given: Any) -> set[str]:
        made = (ask(odd, "chat/completions", **body, seed=seed, **given) for seed in range(4))
        return {answer["choices"][0]["message"]["content"] for answer in made}

    assert len(answers()) == 1  # top_k 1 of generation_config.json
    assert len(answers(top_k=-1, temperature=2)) == 4
    assert len({ask(odd, "completions", prompt="hi", seed=seed)["choices"][0]["text"] for seed in range(4)}) == 4


def test_defaults_of_a_model_can_be_switched_off(folder: Path, tmp_path: Path) -> None:
    flags = ["--model", str(folder), "--no-generation-config", "--threads", "1"]
    with running_server(str(tmp_path), flags) as plain:
        body = {"model": str(folder), "messages": [{"role": "user", "content": "hi"}], "max_tokens": 12}
        made = [ask(plain, "chat/completions", **body, seed=seed) for seed in (1, 2)]
    answers = {answer["choices"][0]["message"]["content"] for answer in made}
    assert len(answers) == 2


BROKEN = {
    "tokenizer.json": [b"{", b"{}", b"[1]", b"\xff\xfe"],
    "tokenizer_config.json": [b"{", b"[]", b"\xff", b'{"added_tokens_decoder": {"x": 5}}', b'{"chat_template": 7}'],
    "special_tokens_map.json": [b"{", b"[]"],
    "added_tokens.json": [b"{", b'{"<x>": "many"}'],
    "chat_template.jinja": [b"\xff\xfe"],
    "chat_template.json": [b"{", b'{"chat_template": [5]}'],
    "additional_chat_templates/tool_use.jinja": [b"\xff\xfe"],
    "generation_config.json": [b"{", b"[]", b'{"do_sample": true, "temperature": -1}'],
}
CASES = [(file, body) for file, bodies in BROKEN.items() for body in bodies]


@pytest.mark.parametrize(("file", "body"), CASES, ids=[f"{file} {body[:9]!r}" for file, body in CASES])
def test_a_broken_file_is_named_before_anything_starts(
    file: str, body: bytes, tmp_path: Path, tiny_folder: Path
) -> None:

    folder = shutil.copytree(tiny_folder, tmp_path / "tiny")
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_bytes(body)
    with pytest.raises(BadRequest) as refused:
        plan_of(Config(data_dir=str(tmp_path / "data"), models=(str(folder),)))
    assert str(folder) in refused.value.message

"""Folders drawn at odds with each other: ids, prompts, ends and log-probabilities are those of transformers."""

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from transformers import AutoModelForCausalLM, AutoTokenizer

from loreloop.formats.configuration import read_spec
from loreloop.protocol.errors import BadRequest
from loreloop.text.templates.chat_template import ChatTemplate
from loreloop.text.tokenizer import TextTokenizer
from tests.model.plain import load, logprobs
from tests.odd import TEXTS, settings_files, write_folder
from tests.tiny import make_tiny_model

CHAT = [{"role": "user", "content": " the <a>fox "}, {"role": "assistant", "content": "é"}]
TOOLS = [{"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}}]


PLAIN = {
    "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast"},
    "special_tokens_map.json": None,
    "added_tokens.json": None,
    "generation_config.json": None,
    "end": None,
    "chat_template.jinja": None,
    "additional_chat_templates": {},
    "tokenizer.json": {},
    "weights": "single",
    "head": "none",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("made") / "tiny", vocab_size=512)


def rendered(render) -> str | None:
    """None: refused."""
    try:
        return render()
    except (BadRequest, ValueError):
        return None


def compare_texts(folder: Path) -> None:
    ours, theirs = TextTokenizer(folder), AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        for special in (False, True):
            found = ours.encode_within(text, 10_000, special=special)
            assert found.ids == ours.encode(text, special=special) == theirs.encode(text, add_special_tokens=special)
            assert ours.decode(found.ids) == theirs.decode(found.ids)
            shown = [one for at, one in enumerate(found.ids) if at not in found.added]
            assert shown == theirs.encode(text, add_special_tokens=False)
        skipped = ours.decode(found.ids, skip_special=True)
        assert skipped == theirs.decode(found.ids, skip_special_tokens=True)
    compare_prompts(ChatTemplate(folder, ours), theirs)
    theirs_end = [] if theirs.eos_token_id is None else [theirs.eos_token_id]
    assert list(ours.end_ids) == theirs_end


def compare_prompts(ours: ChatTemplate, theirs) -> None:
    several = isinstance(theirs.chat_template, dict)
    for tools in (None, TOOLS):
        template = ours.with_tools if tools else ours
        own = rendered(lambda: template.render(CHAT, tools=tools, documents=[{"title": "t", "text": "x"}]))  # noqa: B023
        wanted = rendered(
            lambda: theirs.apply_chat_template(
                CHAT,
                tools=tools,  # noqa: B023
                documents=[{"title": "t", "text": "x"}],
                tokenize=False,
                add_generation_prompt=True,
            )
        )
        if wanted is None and several:  # further templates alone: we fall back to the tokenizer's default
            continue
        assert own == wanted


def compare_numbers(folder: Path, files) -> None:
    named = [files["end"], (files["generation_config.json"] or {}).get("eos_token_id")]
    wanted = {i for end in named for i in (end if isinstance(end, list) else [end]) if i is not None}
    assert set(read_spec(folder).eos_token_ids) == wanted
    ids = TextTokenizer(folder).encode("the quick brown fox", special=True)
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(folder)
        theirs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        assert (logprobs(load(folder), [ids]) - theirs).abs().max() < 1e-4


def check(made: Path, files) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_folder(files, made, Path(scratch) / "odd")
        compare_texts(folder)
        compare_numbers(folder, files)


ODD = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@pytest.mark.numbers
@settings(max_examples=25, **ODD)
@given(files=settings_files())
def test_a_folder_means_what_it_means_to_transformers(made, files):
    check(made, files)


@pytest.mark.numbers
def test_a_token_that_loses_its_id_to_another_has_the_form_of_the_list(made):
    named = {"content": "<a>", "lstrip": True, "rstrip": False, "normalized": False, "single_word": False}
    check(
        made, PLAIN | {"special_tokens_map.json": {"bos_token": named}, "added_tokens.json": {"<a>": 512, "<b>": 512}}
    )


@pytest.mark.slow
@pytest.mark.numbers
@settings(max_examples=400, **ODD)
@given(files=settings_files())
def test_some_hundred_folders_mean_what_they_mean_to_transformers(made, files):
    check(made, files)

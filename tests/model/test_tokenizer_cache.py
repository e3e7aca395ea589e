"""Tokenizers written into a Hugging Face cache are found there under any name, offline, by transformers."""

import subprocess
import sys

import pytest
from transformers import AutoConfig, AutoTokenizer

from loreloop.model.tokenizer_cache import write_tokenizer
from tests.tiny import make_tiny_model

NAME = "Qwen/Qwen3-8B-Base"
MESSAGES = [{"role": "user", "content": "What is it?"}]


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "hub"


def found(name, cache):
    return AutoTokenizer.from_pretrained(name, cache_dir=cache, local_files_only=True)


@pytest.mark.parametrize("name", [NAME, "plain-name"])
def test_the_tokenizer_is_found_under_the_name(tiny_folder, cache, name):
    write_tokenizer(tiny_folder, name, cache)
    own, theirs = AutoTokenizer.from_pretrained(tiny_folder), found(name, cache)
    assert theirs.encode("the quick brown fox 12") == own.encode("the quick brown fox 12")
    assert theirs.apply_chat_template(MESSAGES, tokenize=False) == own.apply_chat_template(MESSAGES, tokenize=False)
    assert theirs.eos_token_id == own.eos_token_id


def test_the_configuration_is_found_too_and_weights_stay_out(tiny_folder, cache):
    snapshot = write_tokenizer(tiny_folder, NAME, cache)
    assert AutoConfig.from_pretrained(NAME, cache_dir=cache, local_files_only=True).model_type == "qwen3"
    assert not list(snapshot.glob("*.safetensors"))


def test_writing_again_is_the_same_snapshot_and_another_tokenizer_takes_its_place(tiny_folder, cache, tmp_path):
    first = write_tokenizer(tiny_folder, NAME, cache)
    assert write_tokenizer(tiny_folder, NAME, cache) == first
    smaller = make_tiny_model(tmp_path / "smaller", vocab_size=300)
    assert write_tokenizer(smaller, NAME, cache) != first
    assert found(NAME, cache).get_vocab() == AutoTokenizer.from_pretrained(smaller).get_vocab()


def test_a_client_with_that_cache_finds_it_offline_by_the_name_alone(tiny_folder, tmp_path, monkeypatch):
    write_tokenizer(tiny_folder, NAME, tmp_path / "hub")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    code = f"from transformers import AutoTokenizer; print(AutoTokenizer.from_pretrained({NAME!r}).encode('fox'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == str(AutoTokenizer.from_pretrained(tiny_folder).encode("fox"))

"""Text to tokens and back, whole and one token at a time."""

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from loreloop.protocol.errors import BadRequest
from loreloop.text.tokenizer import Detokenizer, TextTokenizer
from tests.text.samples import byte_level, with_word_marks


@pytest.fixture(scope="module", params=[byte_level, with_word_marks])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    return request.param(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def bytes_only(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    return byte_level(tmp_path_factory.mktemp("bytes"))


def pieces(tokenizer: TextTokenizer, tokens: list[int], **settings: bool) -> list[str]:
    growing = Detokenizer(tokenizer, **settings)
    return [*(growing.push(token) for token in tokens), growing.flush()]


def test_it_reads_what_transformers_reads(tiny_folder: Path) -> None:
    ours, theirs = TextTokenizer(tiny_folder), AutoTokenizer.from_pretrained(tiny_folder)
    text = "<|im_start|>user\nnaïve 12 + 34 = 🐙?<|im_end|>\n"
    tokens = ours.encode(text)
    assert tokens == theirs.encode(text, add_special_tokens=False)
    assert ours.decode(tokens) == theirs.decode(tokens) == text
    assert ours.decode(tokens, skip_special=True) == theirs.decode(tokens, skip_special_tokens=True)


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"no tokenizer\.json"):
        TextTokenizer(tmp_path)


@given(text=st.text(st.sampled_from("ab <>é€🐙\n"), max_size=30))
def test_text_comes_out_as_it_went_in(tokenizer: TextTokenizer, text: str) -> None:
    tokens = tokenizer.encode(text)
    assert "".join(pieces(tokenizer, tokens)) == tokenizer.decode(tokens)
    assert tokenizer.count(text) == len(tokens)


@given(tokens=st.lists(st.integers(0, 260), max_size=24))
def test_any_tokens_grow_into_what_they_say_together(bytes_only: TextTokenizer, tokens: list[int]) -> None:
    assert "".join(pieces(bytes_only, tokens)) == bytes_only.decode(tokens)


@pytest.mark.parametrize("character", ["é", "€", "🐙"])
def test_a_character_waits_for_its_last_byte(tmp_path: Path, character: str) -> None:
    tokenizer = byte_level(tmp_path)
    tokens = tokenizer.encode(character)
    assert len(tokens) == len(character.encode())
    assert pieces(tokenizer, tokens) == [*[""] * (len(tokens) - 1), character, ""]


def test_bytes_that_never_become_a_character_are_shown_at_the_end(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path)
    assert pieces(tokenizer, tokenizer.encode("🐙")[:2])[-1] == "\ufffd"


def test_special_tokens_are_text_or_are_left_out(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path)
    tokens = tokenizer.encode("a<|im_end|>b")
    assert "".join(pieces(tokenizer, tokens)) == "a<|im_end|>b"
    assert "".join(pieces(tokenizer, tokens, skip_special=True)) == "ab"


@given(st.lists(st.sampled_from(["a", "ab", " ", "é", "<", "the ", "\n"]), max_size=40), st.integers(1, 60))
def test_a_bounded_text_is_read_as_any_other(tokenizer: TextTokenizer, words: list[str], most: int) -> None:
    text = "".join(words)
    ids = tokenizer.encode(text)
    found = tokenizer.encode_within(text, most)
    assert (found and found.ids) == (ids if len(ids) <= most else None)


@pytest.mark.timed
def test_of_a_long_text_no_more_is_read_than_its_bound(tokenizer: TextTokenizer) -> None:
    text = "a b é " * 100_000
    n_tokens = len(tokenizer.encode(text))
    found = tokenizer.encode_within(text, n_tokens)
    assert found is not None
    assert len(found.ids) == n_tokens
    assert tokenizer.encode_within(text, n_tokens - 1) is None
    begun = time.perf_counter()
    assert tokenizer.encode_within(text * 20, 1_000) is None
    assert time.perf_counter() - begun < 0.2

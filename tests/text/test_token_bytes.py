"""Bytes of single tokens: as another library reads them out of the same file, and in sum the text's own."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLTokenizer
from tokenizers import Tokenizer, decoders, models

from loreloop.text.token_bytes import TokenBytes
from loreloop.text.tokenizer import TextTokenizer
from tests.text.samples import byte_level, with_word_marks

KINDS = [byte_level, with_word_marks]


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    return request.param(tmp_path_factory.mktemp("tokenizer"))


@pytest.mark.parametrize("kind", KINDS)
def test_every_token_has_the_bytes_that_grammars_see(kind: Callable[[Path], TextTokenizer], tmp_path: Path) -> None:
    tokenizer, other = kind(tmp_path), LLTokenizer(str(tmp_path / "tokenizer.json"))
    for token in range(tokenizer.tokenizer.get_vocab_size()):
        theirs = other.decode_bytes([token]) or b"\xff"  # which they keep for marks of their own
        assert tokenizer.bytes.of(token) == theirs, token
    assert tokenizer.bytes.of(1 << 20) == b""


@given(
    text=st.text(st.characters(exclude_characters="▁", exclude_categories=["Cs"]))
)  # which word marks read as a space
def test_a_texts_tokens_hold_its_bytes(tokenizer: TextTokenizer, text: str) -> None:
    held = b"".join(map(tokenizer.bytes.of, tokenizer.encode(text)))
    assert held.decode().removeprefix(" ") == text.removeprefix(" ")  # one kind puts a mark before the first word


def test_metaspace_and_added_tokens(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.BPE({"▁a": 0, "a": 1, "<0x61>": 2}, []))
    tokenizer.decoder = decoders.Metaspace("▁")
    tokenizer.add_tokens(["▁é"])
    spelled = TokenBytes(tokenizer)
    assert [spelled.of(token) for token in range(4)] == [b" a", b"a", b"<0x61>", "▁é".encode()]


def test_an_unknown_spelling_is_decoded() -> None:
    tokenizer = Tokenizer(models.WordPiece({"a": 0, "##b": 1}, unk_token="a"))
    tokenizer.decoder = decoders.WordPiece("##")
    assert TokenBytes(tokenizer).of(0) == b"a"
    tokenizer.decoder = None  # type: ignore[assignment]
    assert TokenBytes(tokenizer).of(1) == b"##b"

"""Kimi's kind of tokenizer: our tokenizer.json against the tiktoken library on the same file."""

import base64
import json

import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers, trainers
from tokenizers import models as bpe_models

from loreloop.formats.adding import add
from loreloop.formats.catalog import Catalog
from loreloop.formats.tiktoken import BYTE_LETTERS, KIMI_PATTERN, convert_tiktoken
from loreloop.protocol.errors import BadRequest
from tests.tiny import make_tiny_model

TEXTS = [
    "the quick brown fox jumps over the lazy dog, doesn't it?  It's 12345 o'clock.\n\n\tYou'LL see.",
    "北京和上海都是很大的城市。The Han 漢字 between letters, ünïcode, ΑΒΓ αβγ, Привет мир, 안녕하세요 🙂🙂",
    "def f(x):\r\n    return x**2  # squares\n\n\n\nprint(f(3))   \n  ",
]
NAMES = {"[BOS]": 0, "[EOS]": 1, "<|im_end|>": 2, "<|im_user|>": 3, "<|tool_calls_section_begin|>": 11}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(a folder as Kimi publishes it, the tiktoken encoding of the same file)."""
    folder = tmp_path_factory.mktemp("kimi")
    trained = Tokenizer(bpe_models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=BYTE_LETTERS)
    trained.train_from_iterator(TEXTS * 20, trainer)
    vocabulary = sorted(trained.get_vocab(), key=trained.get_vocab().get)
    byte_of = {letter: byte for byte, letter in enumerate(BYTE_LETTERS)}
    ranks = {bytes(byte_of[letter] for letter in token): rank for rank, token in enumerate(vocabulary)}
    lines = [b"%s %d" % (base64.b64encode(token), rank) for token, rank in ranks.items()]
    (folder / "tiktoken.model").write_bytes(b"\n".join(lines))
    named = {str(len(ranks) + at): {"content": name, "special": True} for name, at in NAMES.items()}
    settings = {"tokenizer_class": "TikTokenTokenizer", "added_tokens_decoder": named}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    convert_tiktoken(folder)
    specials = {name: len(ranks) + at for name, at in NAMES.items()}
    return folder, tiktoken.Encoding("kimi", pat_str=KIMI_PATTERN, mergeable_ranks=ranks, special_tokens=specials)


@pytest.mark.parametrize("text", TEXTS)
def test_texts_have_the_same_ids(made, text):
    folder, theirs = made
    own = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert own.encode(text).ids == theirs.encode(text)
    assert own.decode(own.encode(text).ids, skip_special_tokens=False) == text


@given(st.text(alphabet=st.one_of(st.characters(codec="utf-8"), st.sampled_from(" \n\r\t'sST12漢字aBcé")), max_size=60))
def test_any_text_has_the_same_ids(made, text):
    folder, theirs = made
    own = Tokenizer.from_file(str(folder / "tokenizer.json"))
    if not any(name in text for name in NAMES):
        assert own.encode(text).ids == theirs.encode(text)


def test_special_tokens_keep_their_ids_and_gaps_are_reserved(made):
    folder, theirs = made
    own = Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = "[BOS]hi<|im_end|><|tool_calls_section_begin|>"
    assert own.encode(text).ids == theirs.encode(text, allowed_special="all")
    assert own.get_vocab_size() == len(theirs._mergeable_ranks) + 256
    n_base = len(theirs._mergeable_ranks)
    assert own.token_to_id(f"<|reserved_token_{n_base + 7}|>") == n_base + 7


def bytes_alone(folder, **added):
    """A folder whose vocabulary is single bytes."""
    lines = [b"%s %d" % (base64.b64encode(bytes([byte])), byte) for byte in range(256)]
    (folder / "tiktoken.model").write_bytes(b"\n".join(lines))
    settings = {"tokenizer_class": "TikTokenTokenizer", "added_tokens_decoder": added}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    convert_tiktoken(folder)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def test_added_tokens_that_are_not_special_show(tmp_path):
    added = {"256": {"content": "[BOS]", "special": True}, "257": {"content": "<think>", "special": False}}
    own = bytes_alone(tmp_path, **added)
    ids = own.encode("[BOS]<think>a").ids
    assert ids == [256, 257, 97]
    assert own.decode(ids, skip_special_tokens=True) == "<think>a"


@pytest.mark.parametrize(
    "added",
    [
        {"256": {"content": "<a>"}, "257": {"content": "<a>"}, "258": {"content": "<b>"}},
        {"256": {"content": "a"}, "257": {"content": "<b>"}},
        {"5": {"content": "<b>"}},
        {"999999999": {"content": "<b>"}},
        {"256": {"name": "<b>"}},
        {"256": "<b>"},
    ],
)
def test_names_that_would_shift_ids_are_refused(tmp_path, added):
    with pytest.raises(BadRequest, match=r"tokenizer_config|added_tokens_decoder"):
        bytes_alone(tmp_path, **added)


def test_a_vocabulary_without_settings_is_refused(made, tmp_path):
    (tmp_path / "tiktoken.model").write_bytes((made[0] / "tiktoken.model").read_bytes())
    with pytest.raises(BadRequest, match=r"tokenizer_config\.json"):
        convert_tiktoken(tmp_path)


@pytest.mark.parametrize("damage", [b"", b"IQ== 0", b"no base64! 3", b"IQ==\n"])
def test_other_files_are_refused(made, tmp_path, damage):
    (tmp_path / "tiktoken.model").write_bytes(damage)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "TikTokenTokenizer"}')
    with pytest.raises(BadRequest, match="no tiktoken vocabulary"):
        convert_tiktoken(tmp_path)


def test_other_classes_are_refused(made, tmp_path):
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "QWenTokenizer"}')
    with pytest.raises(BadRequest, match="QWenTokenizer"):
        convert_tiktoken(tmp_path)


def test_the_catalog_converts_what_it_adds(made, tmp_path):
    folder, theirs = made
    model = make_tiny_model(tmp_path / "model", vocab_size=2048)
    (model / "tokenizer.json").unlink()
    for name in ("tiktoken.model", "tokenizer_config.json"):
        (model / name).write_bytes((folder / name).read_bytes())
    entry = add(Catalog(tmp_path / "data"), str(model), "kimi")
    own = Tokenizer.from_file(str(entry.folder / "tokenizer.json"))
    assert own.encode(TEXTS[0]).ids == theirs.encode(TEXTS[0])


def test_a_whole_piece_that_is_a_token_stands_for_itself(tmp_path):
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"abc": 256}  # no merge leads to it
    lines = [b"%s %d" % (base64.b64encode(token), rank) for token, rank in ranks.items()]
    (tmp_path / "tiktoken.model").write_bytes(b"\n".join(lines))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "TikTokenTokenizer"}')
    convert_tiktoken(tmp_path)
    own = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    theirs = tiktoken.Encoding("k", pat_str=KIMI_PATTERN, mergeable_ranks=ranks, special_tokens={})
    assert own.encode("abc abcd").ids == theirs.encode("abc abcd")

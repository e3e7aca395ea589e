"""Tokenizers that the text tests share: byte-level as the tiny model has it, and pieces with a word mark and byte
fallback, as SentencePiece models have them."""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from loreloop.text.tokenizer import TextTokenizer
from tests.tiny import make_tokenizer

PIECES = ["▁", "a", "b", "é", "▁a", "▁ab", "ab", "<", ">"]


def byte_level(folder: Path) -> TextTokenizer:
    make_tokenizer(folder, 300)
    return TextTokenizer(folder)


def with_word_marks(folder: Path) -> TextTokenizer:
    """Writes the first word of a text without the space that its mark stands for."""
    vocab = {piece: number for number, piece in enumerate(["<unk>", *(f"<0x{i:02X}>" for i in range(256)), *PIECES])}
    merges = [("a", "b"), ("▁", "a"), ("▁a", "b")]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", "first")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({}))
    return TextTokenizer(folder)

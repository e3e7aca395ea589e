"""The tokenizer of a GGUF file → `tokenizer.json` and `tokenizer_config.json`.

Byte-level BPE whose way to split text is known here by the file's name for it; others are refused by theirs. Knows no
tensors.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from loreloop.protocol.errors import BadRequest

CONTROL_TOKEN, USER_DEFINED_TOKEN = 3, 4  # the token types of special tokens, and of others added whole
SPECIAL_NAMES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3, QWEN2 = _WORDS.format(digits=r"\p{N}{1,3}"), _WORDS.format(digits=r"\p{N}")
BY_PATTERN = {"llama-bpe": LLAMA3, "llama3": LLAMA3, "llama-v3": LLAMA3, "qwen2": QWEN2, "deepseek-r1-qwen": QWEN2}
KNOWN = ("smollm", "gpt-2", *BY_PATTERN)


def write_tokenizer(about: dict[str, Any], folder: Path) -> None:
    """`about` is what the file says of its model, by name."""
    kind, splitting = about["tokenizer.ggml.model"], about.get("tokenizer.ggml.pre")
    if kind != "gpt2" or splitting not in KNOWN:
        raise BadRequest(
            f"The tokenizer kind {(kind, splitting)} is not converted; gpt2 is, where it splits text by one of "
            f"{', '.join(KNOWN)}."
        )
    tokens: list[str] = about["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in about["tokenizer.ggml.merges"]]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    # Llama 3's gives a piece that is a token to that token, whatever its merges would come to.
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=BY_PATTERN.get(splitting) == LLAMA3))
    tokenizer.pre_tokenizer = _splitting(splitting)
    if BY_PATTERN.get(splitting) == QWEN2:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(
        [
            AddedToken(token, special=kind == CONTROL_TOKEN, normalized=False)
            for token, kind in zip(tokens, about["tokenizer.ggml.token_type"], strict=True)
            if kind in (CONTROL_TOKEN, USER_DEFINED_TOKEN)
        ]
    )
    ids = {name: about.get(f"tokenizer.ggml.{key}_token_id") for name, key in SPECIAL_NAMES.items()}
    named = {name: tokens[index] for name, index in ids.items() if index is not None}
    if around := [f"{named['bos_token']}:0"] if about.get("tokenizer.ggml.add_bos_token") else []:
        special = [(named["bos_token"], ids["bos_token"])]
        tokenizer.post_processor = processors.TemplateProcessing(" ".join((*around, "$A:0")), special_tokens=special)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_settings(about, named, folder)


def _write_settings(about: dict[str, Any], named: dict[str, str], folder: Path) -> None:
    settings: dict[str, Any] = {
        **named,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": about[f"{about['general.architecture']}.context_length"],
        "clean_up_tokenization_spaces": False,
        "chat_template": about.get("tokenizer.chat_template"),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1, ensure_ascii=False))


def _splitting(name: str) -> pre_tokenizers.PreTokenizer:
    if name == "gpt-2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name == "smollm":  # digits one by one
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    words = pre_tokenizers.Split(Regex(BY_PATTERN[name]), "isolated")
    return pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

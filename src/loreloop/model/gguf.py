"""A llama-type GGUF file → a published folder: weights dequantised once to bf16, configuration, tokenizer, template.

Reading and dequantising is the `gguf` package's; the names, the order of rotary rows and the tokenizer are put back
here into the form in which such models are published.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, dequantize
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from loreloop.model.tensor_file import write_tensors
from loreloop.protocol.errors import BadRequest

LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
CONTROL_TOKEN = 3  # the token type of special tokens


def convert(file: Path, folder: Path) -> None:
    """Fills `folder` from `file`."""
    reader = GGUFReader(str(file))
    about = {field.name: field.contents() for field in reader.fields.values()}
    if about.get("general.architecture") != "llama":
        raise BadRequest(f"{file.name} holds a {about.get('general.architecture')!r} model; llama files are converted.")
    tensors = dict(_tensors(reader, about))
    write_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
    config = _config(about, tied="lm_head.weight" not in tensors)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    _write_tokenizer(about, folder)


def _tensors(reader: GGUFReader, about: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    heads = {"attn_q": about["llama.attention.head_count"], "attn_k": about["llama.attention.head_count_kv"]}
    for tensor in reader.tensors:
        parts = tensor.name.split(".")
        values: NDArray[np.float32] = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if parts[0] != "blk":
            name = TOP_NAMES[parts[0]]
        else:
            name = f"model.layers.{parts[1]}.{LAYER_NAMES[parts[2]]}"
            if parts[2] in heads:
                values = _half_split(values, heads[parts[2]])
        yield f"{name}.weight", torch.from_numpy(np.ascontiguousarray(values)).to(torch.bfloat16)


def _half_split(weight_OI: NDArray[np.float32], n_heads: int) -> NDArray[np.float32]:
    """GGUF pairs neighbouring rows for rotation; published folders pair the two halves of a head."""
    d_out, d_in = weight_OI.shape
    pairs = weight_OI.reshape(n_heads, d_out // n_heads // 2, 2, d_in)
    return pairs.swapaxes(1, 2).reshape(d_out, d_in)


def _config(about: dict[str, Any], *, tied: bool) -> dict[str, Any]:
    n_heads = about["llama.attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(about["tokenizer.ggml.tokens"]),
        "hidden_size": about["llama.embedding_length"],
        "intermediate_size": about["llama.feed_forward_length"],
        "num_hidden_layers": about["llama.block_count"],
        "num_attention_heads": n_heads,
        "num_key_value_heads": about["llama.attention.head_count_kv"],
        "head_dim": about["llama.embedding_length"] // n_heads,
        "max_position_embeddings": about["llama.context_length"],
        "rope_theta": about["llama.rope.freq_base"],
        "rms_norm_eps": about["llama.attention.layer_norm_rms_epsilon"],
        "hidden_act": "silu",
        "tie_word_embeddings": tied,
        "bos_token_id": about["tokenizer.ggml.bos_token_id"],
        "eos_token_id": about["tokenizer.ggml.eos_token_id"],
        "torch_dtype": "bfloat16",
    }


def _write_tokenizer(about: dict[str, Any], folder: Path) -> None:
    """A byte-level BPE tokenizer that splits digits one by one, as the file's kind `smollm` has it."""
    kind = (about["tokenizer.ggml.model"], about.get("tokenizer.ggml.pre"))
    if kind != ("gpt2", "smollm"):
        raise BadRequest(f"The tokenizer kind {kind} is not converted; only gpt2 with the smollm splitting is.")
    tokens: list[str] = about["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in about["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    kinds = about["tokenizer.ggml.token_type"]
    specials = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    tokenizer.save(str(folder / "tokenizer.json"))
    ids = {name: about.get(f"tokenizer.ggml.{key}_token_id") for name, key in SPECIAL_NAMES.items()}
    settings = {name: tokens[index] for name, index in ids.items() if index is not None}
    settings |= {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": about["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "chat_template": about.get("tokenizer.chat_template"),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1, ensure_ascii=False))


SPECIAL_NAMES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}

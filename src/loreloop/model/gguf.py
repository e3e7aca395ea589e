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
from gguf import GGMLQuantizationType, GGUFReader, ReaderTensor, dequantize
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from loreloop.model.blocks import Blocks, write_blocks
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
CONTROL_TOKEN, USER_DEFINED_TOKEN = 3, 4  # the token types of special tokens, and of others added whole
BLOCK_KINDS = {  # fp16 numbers of a block, and bytes of codes
    GGMLQuantizationType.Q4_0: (1, 16),
    GGMLQuantizationType.Q4_1: (2, 16),
    GGMLQuantizationType.Q8_0: (1, 32),
}


def convert(file: Path, folder: Path) -> None:
    """Fills `folder` from `file`."""
    reader = GGUFReader(str(file))
    about = {field.name: field.contents() for field in reader.fields.values()}
    if about.get("general.architecture") != "llama":
        raise BadRequest(f"{file.name} holds a {about.get('general.architecture')!r} model; llama files are converted.")
    tensors = dict(_tensors(reader, about))
    write_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
    add_blocks(file, folder)
    config = _config(about, tied="lm_head.weight" not in tensors)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    _write_tokenizer(about, folder)


def add_blocks(file: Path, folder: Path) -> None:
    """Keeps the file's own 4- and 8-bit blocks beside the model, where all of its matrices have such."""
    reader = GGUFReader(str(file))
    about = {field.name: field.contents() for field in reader.fields.values()}
    matrices = [tensor for tensor in reader.tensors if len(tensor.shape) > 1]
    if all(tensor.tensor_type in BLOCK_KINDS for tensor in matrices):
        write_blocks(folder, {_name(tensor): _blocks(tensor, about) for tensor in matrices})


def _tensors(reader: GGUFReader, about: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    for tensor in reader.tensors:
        values: NDArray[np.float32] = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        values = _rotary_order(tensor, about, values)
        yield _name(tensor), torch.from_numpy(np.ascontiguousarray(values)).to(torch.bfloat16)


def _name(tensor: ReaderTensor) -> str:
    parts = tensor.name.split(".")
    name = f"model.layers.{parts[1]}.{LAYER_NAMES[parts[2]]}" if parts[0] == "blk" else TOP_NAMES[parts[0]]
    return f"{name}.weight"


def _blocks(tensor: ReaderTensor, about: dict[str, Any]) -> Blocks:
    """A matrix's blocks of 32 inputs: one or two fp16 numbers, then its codes; half a block's 4-bit codes lie in low
    halves of bytes and the others in high ones."""
    kind = GGMLQuantizationType(tensor.tensor_type)
    n_numbers, n_bytes = BLOCK_KINDS[kind]
    raw_OB = _rotary_order(tensor, about, tensor.data.view(np.uint8))
    block_OGB = np.ascontiguousarray(raw_OB).reshape(raw_OB.shape[0], -1, 2 * n_numbers + n_bytes)
    number_OGN = torch.from_numpy(np.ascontiguousarray(block_OGB[:, :, : 2 * n_numbers]).view(np.float16))
    code_OGB = torch.from_numpy(np.ascontiguousarray(block_OGB[:, :, 2 * n_numbers :]))
    scale_OG = number_OGN[:, :, 0].contiguous()
    if kind == GGMLQuantizationType.Q8_0:
        return Blocks(code_OGB.view(torch.int8).flatten(1), scale_OG, None)
    code_OI = torch.cat((code_OGB & 15, code_OGB >> 4), -1).flatten(1)
    offset_OG = -8 * scale_OG if kind == GGMLQuantizationType.Q4_0 else number_OGN[:, :, 1].contiguous()
    return Blocks(code_OI, scale_OG, offset_OG)


def _rotary_order(tensor: ReaderTensor, about: dict[str, Any], rows: NDArray[Any]) -> NDArray[Any]:
    """The rows of queries and keys as published folders order them."""
    heads = {"attn_q": about["llama.attention.head_count"], "attn_k": about["llama.attention.head_count_kv"]}
    part = tensor.name.split(".")[-2]
    return _half_split(rows, heads[part]) if part in heads else rows


def _half_split(weight_OI: NDArray[Any], n_heads: int) -> NDArray[Any]:
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
    tokenizer.add_tokens(
        [
            AddedToken(token, special=kind == CONTROL_TOKEN, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind in (CONTROL_TOKEN, USER_DEFINED_TOKEN)
        ]
    )
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

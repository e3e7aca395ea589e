"""A GGUF file of a dense llama, qwen2 or qwen3 model → a published folder: weights dequantised once to bf16,
configuration, tokenizer, template.

Reading and dequantising is the `gguf` package's; the names, the order of rotary rows and the tokenizer
(`gguf_tokenizer.py`) are put back into the form in which such models are published.

Legend: O outputs, I inputs, G groups of inputs, B bytes, N numbers of a group beside its codes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader, ReaderTensor, dequantize
from numpy.typing import NDArray
from torch import Tensor

from loreloop.formats.gguf_header import check_header
from loreloop.formats.gguf_tokenizer import write_tokenizer
from loreloop.formats.quantized_blocks import Blocks, write_blocks
from loreloop.formats.tensor_file import write_tensors
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
HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
ROPE_FREQUENCIES = "rope_freqs.weight"  # by what llama3's scaling divides each frequency
LOW, HIGH, WINDOW = 1.0, 4.0, 8192  # of that scaling, in all models that have it
TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
BLOCK_KINDS = {  # fp16 numbers of a block, and bytes of codes
    GGMLQuantizationType.Q4_0: (1, 16),
    GGMLQuantizationType.Q4_1: (2, 16),
    GGMLQuantizationType.Q8_0: (1, 32),
}


def convert(file: Path, folder: Path) -> None:
    """Fills `folder` from `file`; BadRequest names what of the file is not converted."""
    reader, about = _opened(file)
    if about.get("general.architecture") not in ARCHITECTURES or about.get(f"{_kind(about)}.expert_count"):
        routed = " of experts" if about.get(f"{_kind(about)}.expert_count") else ""
        raise BadRequest(
            f"{file} holds a {_kind(about)!r} model{routed}; dense {', '.join(ARCHITECTURES)} files are converted."
        )
    try:
        tensors = dict(_tensors(reader, about))
        config = _config(about, tied="lm_head.weight" not in tensors, frequencies=_frequencies(reader))
        write_tokenizer(about, folder)
    except (LookupError, ValueError, TypeError, ArithmeticError) as error:
        raise BadRequest(f"{file} lacks or misspells something: {error}.") from None
    write_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
    add_blocks(file, folder)
    (folder / "config.json").write_text(json.dumps(config, indent=1))


def add_blocks(file: Path, folder: Path) -> None:
    """Keeps the file's own 4- and 8-bit blocks beside the model, where all of its matrices have such."""
    reader, about = _opened(file)
    matrices = [tensor for tensor in reader.tensors if len(tensor.shape) > 1]
    if all(tensor.tensor_type in BLOCK_KINDS for tensor in matrices):
        write_blocks(folder, {_name(tensor): _blocks(tensor, about) for tensor in matrices})


def _opened(file: Path) -> tuple[GGUFReader, dict[str, Any]]:
    """The file, and what it says about its model by name."""
    check_header(file)
    try:
        reader = GGUFReader(str(file))
        return reader, {field.name: field.contents() for field in reader.fields.values()}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise BadRequest(f"{file} cannot be read as a GGUF file: {error}.") from None


def _kind(about: dict[str, Any]) -> str:
    return str(about.get("general.architecture"))


def _tensors(reader: GGUFReader, about: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    for tensor in reader.tensors:
        if tensor.name == ROPE_FREQUENCIES:
            continue
        values: NDArray[np.float32] = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        values = _rotary_order(tensor, about, values)
        yield _name(tensor), torch.from_numpy(np.ascontiguousarray(values)).to(torch.bfloat16)


def _name(tensor: ReaderTensor) -> str:
    parts = tensor.name.split(".")
    known = LAYER_NAMES | HEAD_NORMS
    name = f"model.layers.{parts[1]}.{known[parts[2]]}" if parts[0] == "blk" else TOP_NAMES[parts[0]]
    return f"{name}.{parts[-1]}"


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
    # Q4_0 codes are symmetric around 8; as an offset this makes both kinds of file the same form.
    offset_OG = -8 * scale_OG if kind == GGMLQuantizationType.Q4_0 else number_OGN[:, :, 1].contiguous()
    return Blocks(code_OI, scale_OG, offset_OG)


def _rotary_order(tensor: ReaderTensor, about: dict[str, Any], rows: NDArray[Any]) -> NDArray[Any]:
    """The rows of queries and keys as published folders order them; only llama files have another order."""
    heads = {"attn_q": _heads(about), "attn_k": _kv_heads(about)} if _kind(about) == "llama" else {}
    part = tensor.name.split(".")[-2]
    return _half_split(rows, heads[part]) if part in heads else rows


def _half_split(weight_OI: NDArray[Any], n_heads: int) -> NDArray[Any]:
    """GGUF pairs neighbouring rows for rotation; published folders pair the two halves of a head."""
    d_out, d_in = weight_OI.shape
    pairs = weight_OI.reshape(n_heads, d_out // n_heads // 2, 2, d_in)
    return pairs.swapaxes(1, 2).reshape(d_out, d_in)


def _heads(about: dict[str, Any]) -> int:
    return int(about[f"{_kind(about)}.attention.head_count"])


def _kv_heads(about: dict[str, Any]) -> int:
    return int(about.get(f"{_kind(about)}.attention.head_count_kv") or _heads(about))


def _frequencies(reader: GGUFReader) -> NDArray[np.float32] | None:
    found = [tensor for tensor in reader.tensors if tensor.name == ROPE_FREQUENCIES]
    return np.array(found[0].data, np.float32) if found else None


def _config(about: dict[str, Any], *, tied: bool, frequencies: NDArray[np.float32] | None) -> dict[str, Any]:
    kind = _kind(about)
    head_dim = about.get(f"{kind}.attention.key_length") or about[f"{kind}.embedding_length"] // _heads(about)
    theta = about.get(f"{kind}.rope.freq_base", 10000.0)
    ends = [about.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    # A chat model ends its turns with another token than its texts, and both must stop a sample.
    ends = list(dict.fromkeys(end for end in ends if end is not None))
    return {
        "architectures": [ARCHITECTURES[kind]],
        "model_type": kind,
        "vocab_size": len(about["tokenizer.ggml.tokens"]),
        "hidden_size": about[f"{kind}.embedding_length"],
        "intermediate_size": about[f"{kind}.feed_forward_length"],
        "num_hidden_layers": about[f"{kind}.block_count"],
        "num_attention_heads": _heads(about),
        "num_key_value_heads": _kv_heads(about),
        "head_dim": head_dim,
        "max_position_embeddings": about[f"{kind}.context_length"],
        "rope_theta": theta,
        "rope_scaling": _scaling(about, theta, head_dim, frequencies),
        "rms_norm_eps": about[f"{kind}.attention.layer_norm_rms_epsilon"],
        "hidden_act": "silu",
        "tie_word_embeddings": tied,
        "bos_token_id": about.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "torch_dtype": "bfloat16",
    }


def _scaling(
    about: dict[str, Any], theta: float, head_dim: int, frequencies: NDArray[np.float32] | None
) -> dict[str, Any] | None:
    """The scaling of the rotary embedding: told by name, or, that of llama3, by what frequencies are divided by."""
    scaling = about.get(f"{_kind(about)}.rope.scaling.type", "none")
    if scaling not in ("none", "linear"):
        raise BadRequest(f"The rope scaling {scaling!r} of GGUF files is not converted; none, linear and llama3 are.")
    if frequencies is None:
        factor_name = f"{_kind(about)}.rope.scaling.factor"
        return {"rope_type": scaling, "factor": about[factor_name]} if scaling == "linear" else None
    # The lowest frequencies are divided by the whole factor, so the largest divisor is the factor.
    factor = float(frequencies.max())
    wanted = [_llama3_divisor(theta ** (-2 * i / head_dim), factor) for i in range(head_dim // 2)]
    if len(frequencies) != len(wanted) or not np.allclose(frequencies, wanted, rtol=1e-3):
        raise BadRequest(f"{ROPE_FREQUENCIES} holds other numbers than llama3's scaling, which alone is converted.")
    about_llama3 = {"low_freq_factor": LOW, "high_freq_factor": HIGH, "original_max_position_embeddings": WINDOW}
    return {"rope_type": "llama3", "factor": factor, **about_llama3}


def _llama3_divisor(frequency: float, factor: float) -> float:
    """By what llama3's scaling divides a frequency: 1 where it turns often in the first window, `factor` where less
    than once, between them in between."""
    n_turns = WINDOW * frequency / (2 * math.pi)
    share = min(1.0, max(0.0, (n_turns - LOW) / (HIGH - LOW)))
    return 1 / ((1 - share) / factor + share)

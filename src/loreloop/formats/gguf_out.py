"""A published llama or mixtral folder → one GGUF file in bf16, as llama.cpp and its relatives read it.

The writer is the `gguf` package's; tensors wait in a temporary file of its own. The tokenizer is told by its kind of
splitting, and a kind that has no name there is refused. `gguf.py` reads such files.

Legend: E experts, O outputs, I inputs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from gguf import GGMLQuantizationType, GGUFWriter, quants
from torch import Tensor

from loreloop.formats.gguf import LAYER_NAMES, TOP_NAMES
from loreloop.formats.gguf_tokenizer import CONTROL_TOKEN, USER_DEFINED_TOKEN
from loreloop.formats.load import read_config, read_config_file, read_stored_spec
from loreloop.formats.weight_files import stored_tensors, stream_tensors
from loreloop.model.spec import DecoderSpec
from loreloop.protocol.errors import BadRequest

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
ORDINARY_TOKEN, UNUSED_TOKEN = 1, 5
PUBLISHED_NAMES = {f"{new}.weight": old for old, new in TOP_NAMES.items()}
PUBLISHED_LAYER_NAMES = {f"{new}.weight": old for old, new in LAYER_NAMES.items()} | {
    "block_sparse_moe.gate.weight": "ffn_gate_inp"
}
EXPERT_NAMES = {"w1": "ffn_gate_exps", "w3": "ffn_up_exps", "w2": "ffn_down_exps"}


WRITTEN = ("llama", "mixtral")  # families of which files are written


def write_gguf(folder: Path, file: Path) -> None:
    """Writes `file` from the model of `folder`."""
    spec = read_stored_spec(folder)
    if spec.family not in WRITTEN:
        raise BadRequest(f"{folder} holds a {spec.family} model; GGUF files are written of llama and mixtral models.")
    if spec.rope.scaling != "none":
        raise BadRequest(
            f"{folder} scales its rotary embedding ({spec.rope.scaling}); no GGUF file is written of that."
        )
    writer = GGUFWriter(str(file), "llama", use_temp_file=True)
    _write_about(writer, spec)
    _write_tokenizer(writer, folder, spec)
    for name, tensor in _renamed(folder, spec):
        # Readers of this format expect vectors, such as norms, in fp32.
        stored = GGMLQuantizationType.BF16 if tensor.dim() > 1 else GGMLQuantizationType.F32
        writer.add_tensor(f"{name}.weight", quants.quantize(tensor.float().numpy(), stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_about(writer: GGUFWriter, spec: DecoderSpec) -> None:
    writer.add_context_length(spec.context_window)
    writer.add_embedding_length(spec.d_model)
    writer.add_block_count(spec.n_layers)
    writer.add_feed_forward_length(spec.d_ff)
    writer.add_head_count(spec.n_heads)
    writer.add_head_count_kv(spec.n_kv_heads)
    writer.add_key_length(spec.d_head)
    writer.add_value_length(spec.d_head)
    writer.add_rope_dimension_count(spec.d_head)
    writer.add_rope_freq_base(spec.rope.theta)
    writer.add_layer_norm_rms_eps(spec.norm_eps)
    writer.add_vocab_size(spec.vocab_size)
    if spec.moe:
        writer.add_expert_count(spec.moe.n_experts)
        writer.add_expert_used_count(spec.moe.top_k)


def _renamed(folder: Path, spec: DecoderSpec) -> Iterator[tuple[str, Tensor]]:
    """Tensors under GGUF's names, queries' and keys' rows in its order, a layer's experts in one."""
    heads = {"attn_q": spec.n_heads, "attn_k": spec.n_kv_heads}
    waiting: dict[str, dict[int, Tensor]] = {}
    stored = {name for name, _ in stored_tensors(folder)}
    for name, read in stream_tensors(folder):
        if name == HEAD and spec.tie_embeddings:
            if EMBEDDING not in stored:
                yield PUBLISHED_NAMES[EMBEDDING], read()  # of the two that are one, a folder may store either
            continue
        if name in PUBLISHED_NAMES:
            yield PUBLISHED_NAMES[name], read()
            continue
        if not name.startswith("model.layers."):
            continue
        layer, _, rest = name.removeprefix("model.layers.").partition(".")
        if rest in PUBLISHED_LAYER_NAMES:
            gguf_name = PUBLISHED_LAYER_NAMES[rest]
            yield f"blk.{layer}.{gguf_name}", _neighbours(read(), heads[gguf_name]) if gguf_name in heads else read()
        elif spec.moe and ".experts." in rest:
            expert, part = rest.split(".")[2:4]
            gguf_name = f"blk.{layer}.{EXPERT_NAMES[part]}"
            experts = waiting.setdefault(gguf_name, {})
            experts[int(expert)] = read()
            # Written as soon as it is whole, so that one layer's experts are in memory at a time.
            if len(experts) == spec.moe.n_experts:
                yield gguf_name, torch.stack([experts[e] for e in sorted(waiting.pop(gguf_name))])


def _neighbours(weight_OI: Tensor, n_heads: int) -> Tensor:
    """GGUF pairs neighbouring rows for rotation; published folders pair the two halves of a head."""
    d_out, d_in = weight_OI.shape
    return weight_OI.view(n_heads, 2, d_out // n_heads // 2, d_in).transpose(1, 2).reshape(d_out, d_in)


def _write_tokenizer(writer: GGUFWriter, folder: Path, spec: DecoderSpec) -> None:
    tokenizer = read_config_file(folder / "tokenizer.json")
    model = tokenizer["model"]
    if model.get("type") != "BPE":
        raise BadRequest(f"The tokenizer of {folder} is of the type {model.get('type')!r}; only BPE goes into GGUF.")
    kind_of = {
        added["content"]: CONTROL_TOKEN if added["special"] else USER_DEFINED_TOKEN
        for added in tokenizer.get("added_tokens", ())
    }
    tokens = model["vocab"] | {added["content"]: added["id"] for added in tokenizer.get("added_tokens", ())}
    if max(tokens.values()) >= spec.vocab_size:
        raise BadRequest(
            f"The tokenizer of {folder} has the id {max(tokens.values())}; the model knows {spec.vocab_size} ids."
        )
    # The vocabulary may be padded beyond the tokenizer, and the file needs a name for every id.
    names = [f"<unused{i}>" for i in range(spec.vocab_size)]
    kinds = [UNUSED_TOKEN] * spec.vocab_size
    for token, index in tokens.items():
        names[index], kinds[index] = token, kind_of.get(token, ORDINARY_TOKEN)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_splitting(tokenizer.get("pre_tokenizer") or {}, folder))
    writer.add_token_list(names)
    writer.add_token_types(kinds)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
    config = read_config(folder)
    if config.get("bos_token_id") is not None:
        writer.add_bos_token_id(int(config["bos_token_id"]))
    if spec.eos_token_ids:
        writer.add_eos_token_id(spec.eos_token_ids[0])
    settings = folder / "tokenizer_config.json"
    template = json.loads(settings.read_text()).get("chat_template") if settings.exists() else None
    if isinstance(template, str):
        writer.add_chat_template(template)


def _splitting(pre_tokenizer: dict[str, Any], folder: Path) -> str:
    """What GGUF calls a way to split text before merging."""
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    kinds = [step.get("type") for step in steps]
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"):
        return "smollm"
    if kinds == ["ByteLevel"]:
        return "gpt-2"
    raise BadRequest(
        f"The tokenizer of {folder} splits text by {kinds}, for which GGUF has no name that is known here."
    )

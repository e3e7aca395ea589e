"""A published folder of some families → one GGUF file in bf16, as llama.cpp and its relatives read it.

The writer and the names are the `gguf` package's; tensors wait in a temporary file of its own. The tokenizer is told by
its kind of splitting, and a kind that has no name there is refused. `gguf.py` reads such files.

Legend: E experts, O outputs, I inputs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFWriter, get_tensor_name_map, quants
from torch import Tensor

from loreloop.formats.configuration import read_config, read_config_file
from loreloop.formats.gguf_tokenizer import BY_PATTERN, CONTROL_TOKEN, USER_DEFINED_TOKEN
from loreloop.formats.load import read_stored_spec
from loreloop.formats.stored_tensors import stored_tensors, stream_tensors
from loreloop.model.spec import UNSCALED, DecoderSpec
from loreloop.protocol.errors import BadRequest

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
ORDINARY_TOKEN, UNUSED_TOKEN = 1, 5
EXPERT_NAMES = {"w1": "ffn_gate_exps", "w3": "ffn_up_exps", "w2": "ffn_down_exps"}
LLAMA, GRANITE, SMOLLM3 = MODEL_ARCH.LLAMA, MODEL_ARCH.GRANITE, MODEL_ARCH.SMOLLM3
# Families of which files are written, and what their readers call them.
WRITTEN: Mapping[str, MODEL_ARCH] = {
    "granite": GRANITE,
    "llama": LLAMA,
    "mistral": LLAMA,
    "mixtral": LLAMA,
    "olmo2": MODEL_ARCH.OLMO2,
    "qwen2": MODEL_ARCH.QWEN2,
    "qwen3": MODEL_ARCH.QWEN3,
    "smollm3": SMOLLM3,
}
TURNED_BY_NEIGHBOURS = (LLAMA, GRANITE, SMOLLM3)  # whose readers pair neighbouring rows for rotation
SMOLLM3_STEP = 4  # which its readers take for granted


def write_gguf(folder: Path, file: Path) -> None:
    """Writes `file` from the model of `folder`."""
    spec = read_stored_spec(folder)
    if spec.family not in WRITTEN:
        known = ", ".join(WRITTEN)
        raise BadRequest(f"{folder} holds a {spec.family} model; GGUF files are written of {known} models.")
    if spec.rope.scaling != "none":
        raise BadRequest(
            f"{folder} scales its rotary embedding ({spec.rope.scaling}); no GGUF file is written of that."
        )
    # Their readers would compute something else without a word.
    every_fourth = tuple(range(SMOLLM3_STEP - 1, spec.n_layers, SMOLLM3_STEP)) if spec.family == "smollm3" else ()
    if any(spec.attention.windows) or spec.attention.unturned != every_fourth:
        raise BadRequest(f"{folder} has windows, or layers without positions; no GGUF file is written of that.")
    arch = WRITTEN[spec.family]
    writer = GGUFWriter(str(file), MODEL_ARCH_NAMES[arch], use_temp_file=True)
    _write_about(writer, spec)
    _write_tokenizer(writer, folder, spec)
    for name, tensor in _renamed(folder, spec, arch):
        # Readers of this format expect vectors, such as norms and biases, in fp32.
        stored = GGMLQuantizationType.BF16 if tensor.dim() > 1 else GGMLQuantizationType.F32
        writer.add_tensor(name, quants.quantize(tensor.float().numpy(), stored), raw_dtype=stored)
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
    if spec.attention.scale is not None:
        writer.add_attention_scale(spec.attention.scale)
    if spec.scales != UNSCALED:
        writer.add_embedding_scale(spec.scales.embedding)
        writer.add_residual_scale(spec.scales.residual)
        writer.add_logit_scale(1 / spec.scales.logit)  # readers divide by it


def _renamed(folder: Path, spec: DecoderSpec, arch: MODEL_ARCH) -> Iterator[tuple[str, Tensor]]:
    """Tensors under GGUF's names, queries' and keys' rows in its order, a layer's experts in one."""
    heads = {"q_proj": spec.n_heads, "k_proj": spec.n_kv_heads} if arch in TURNED_BY_NEIGHBOURS else {}
    known = get_tensor_name_map(arch, spec.n_layers)
    waiting: dict[str, dict[int, Tensor]] = {}
    stored = {name for name, _ in stored_tensors(folder)}
    for name, read in stream_tensors(folder):
        if name == HEAD and spec.tie_embeddings:
            if EMBEDDING in stored:
                continue
            name = EMBEDDING  # of the two that are one, a folder may store either
        layer, _, rest = name.removeprefix("model.layers.").partition(".")
        if spec.moe and ".experts." in rest:
            expert, part = rest.split(".")[2:4]
            gguf_name = f"blk.{layer}.{EXPERT_NAMES[part]}.weight"
            experts = waiting.setdefault(gguf_name, {})
            experts[int(expert)] = read()
            # Written as soon as it is whole, so that one layer's experts are in memory at a time.
            if len(experts) == spec.moe.n_experts:
                yield gguf_name, torch.stack([experts[e] for e in sorted(waiting.pop(gguf_name))])
        elif (own := known.get_name(name, (".weight", ".bias"))) is not None:
            part = name.split(".")[-2]
            yield own, _neighbours(read(), heads[part]) if part in heads else read()


def _neighbours(weight_O: Tensor, n_heads: int) -> Tensor:
    """GGUF pairs neighbouring rows for rotation; published folders pair the two halves of a head. Also of biases."""
    return weight_O.unflatten(0, (n_heads, 2, -1)).transpose(1, 2).reshape(weight_O.shape)


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
    if kinds == ["Split", "ByteLevel"] and steps[0].get("behavior") == "Isolated" and not steps[1].get("use_regex"):
        pattern = steps[0].get("pattern", {}).get("Regex")
        if found := [name for name, regex in BY_PATTERN.items() if regex == pattern]:
            return found[0]
    raise BadRequest(
        f"The tokenizer of {folder} splits text by {kinds}, for which GGUF has no name that is known here."
    )

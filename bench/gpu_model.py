"""A model of random weights in the shape of Qwen3-8B, or a tiny one of the same kind, as a published folder."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from loreloop.formats.tensor_file import write_tensors

QWEN3_8B = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 151_936,
    "hidden_size": 4096,
    "intermediate_size": 12_288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "max_position_embeddings": 40_960,
    "tie_word_embeddings": False,
    "eos_token_id": 151_645,
}
TINY = QWEN3_8B | {
    "vocab_size": 49_152,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}


def write_model(folder: Path, config: dict[str, object], device: str) -> None:
    """A file a layer; config.json comes last, so that a folder that has one is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    d, ff, vocab = (int(str(config[name])) for name in ("hidden_size", "intermediate_size", "vocab_size"))
    heads, groups, width = (
        int(str(config[name])) for name in ("num_attention_heads", "num_key_value_heads", "head_dim")
    )

    def random(*shape: int) -> torch.Tensor:
        return (0.02 * torch.randn(*shape, device=device)).bfloat16().cpu()

    for layer in range(int(str(config["num_hidden_layers"]))):
        at = f"model.layers.{layer}."
        weights = {
            "self_attn.q_proj": random(heads * width, d),
            "self_attn.k_proj": random(groups * width, d),
            "self_attn.v_proj": random(groups * width, d),
            "self_attn.o_proj": random(d, heads * width),
            "mlp.gate_proj": random(ff, d),
            "mlp.up_proj": random(ff, d),
            "mlp.down_proj": random(d, ff),
        }
        for name, size in (("input_layernorm", d), ("post_attention_layernorm", d)):
            weights[name] = torch.ones(size).bfloat16()
        for name in ("self_attn.q_norm", "self_attn.k_norm"):
            weights[name] = torch.ones(width).bfloat16()
        named = {f"{at}{name}.weight": tensor for name, tensor in weights.items()}
        write_tensors(folder / f"layer-{layer:03}.safetensors", named)
    ends = {"model.embed_tokens.weight": random(vocab, d), "lm_head.weight": random(vocab, d)}
    write_tensors(folder / "ends.safetensors", ends | {"model.norm.weight": torch.ones(d).bfloat16()})
    (folder / "config.json").write_text(json.dumps(config))

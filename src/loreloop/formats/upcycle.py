"""A dense llama folder → a mixtral folder whose experts are all its feed-forward: a real model of experts, made here.

As it comes it computes what the dense model does, since a token's weights sum to one. Noise makes the experts differ,
skew makes the router prefer some. Streams: one tensor and one shard in memory.

Legend: O outputs, I inputs, E experts, D model width, F width of the dense feed-forward.
"""

from __future__ import annotations

import json
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from loreloop.formats.checksums import NOTE
from loreloop.formats.configuration import read_config_file
from loreloop.formats.shards import SHARD_BYTES, ShardWriter
from loreloop.formats.stored_tensors import stream_tensors
from loreloop.protocol.errors import BadRequest

EXPERT_PARTS = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}


@dataclass(frozen=True)
class Upcycling:
    """`noise` is relative to each weight matrix's root mean square; with `skew` s the rows of the router are from 1 to
    s times as long, so that the last experts are asked more firmly than the first."""

    n_experts: int = 4
    top_k: int = 2
    noise: float = 0.0
    skew: float = 1.0
    seed: int = 0


def upcycle(source: Path, target: Path, recipe: Upcycling, shard_bytes: int = SHARD_BYTES) -> None:
    """Fills the folder `target` from the folder `source`."""
    config = read_config_file(source / "config.json")
    if config.get("model_type") != "llama":
        raise BadRequest(f"{source} holds a {config.get('model_type')!r} model; experts are made of llama models.")
    for file in source.iterdir():
        if file.is_file() and not file.name.endswith((".safetensors", ".safetensors.index.json", NOTE)):
            shutil.copyfile(file, target / file.name)
    (target / "config.json").write_text(json.dumps(_config(config, recipe), indent=1))
    writer = ShardWriter(target, shard_bytes)
    for name, read in stream_tensors(source):
        tensor = read()
        layer, _, rest = name.partition(".mlp.")
        if not rest:
            writer.add(name, tensor)
            continue
        part = rest.removesuffix(".weight")
        for expert in range(recipe.n_experts):
            expert_name = f"{layer}.block_sparse_moe.experts.{expert}.{EXPERT_PARTS[part]}.weight"
            writer.add(expert_name, _perturbed(tensor, recipe, expert_name))
        # A layer's router is made when its gate comes by, whose width and dtype it takes.
        if part == "gate_proj":
            router_name = f"{layer}.block_sparse_moe.gate.weight"
            writer.add(router_name, _router(tensor, recipe, router_name))
    writer.close()


def _config(config: dict[str, object], recipe: Upcycling) -> dict[str, object]:
    return config | {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "num_local_experts": recipe.n_experts,
        "num_experts_per_tok": recipe.top_k,
        "sliding_window": None,
        "router_aux_loss_coef": 0.0,
    }


def _perturbed(weight_OI: Tensor, recipe: Upcycling, name: str) -> Tensor:
    if not recipe.noise:
        return weight_OI
    noise_OI = torch.randn(weight_OI.shape, generator=_generator(recipe, name))
    size = weight_OI.float().square().mean().sqrt() * recipe.noise
    return (weight_OI.float() + noise_OI * size).to(weight_OI.dtype)


def _router(gate_FD: Tensor, recipe: Upcycling, name: str) -> Tensor:
    """Random rows whose scores are of the order of one."""
    d_model = gate_FD.shape[1]
    rows_ED = torch.randn(recipe.n_experts, d_model, generator=_generator(recipe, name)) / d_model**0.5
    length_E1 = torch.logspace(0, 1, recipe.n_experts, base=recipe.skew)[:, None] if recipe.skew != 1 else 1.0
    return (rows_ED * length_E1).to(gate_FD.dtype)


def _generator(recipe: Upcycling, name: str) -> torch.Generator:
    """Each tensor has its own numbers, whatever the order of the files."""
    return torch.Generator().manual_seed(recipe.seed << 32 | zlib.crc32(name.encode()))

"""A published folder (config.json, safetensors) → a `Decoder`, streamed tensor by tensor into its place.

Fused weights are allocated once and their parts copied in, so that host memory holds the model and one tensor more.
Missing, extra and wrongly shaped tensors are refused by name; nothing in the folder is ever executed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional as F

from loreloop.model.decoder import Decoder, GatedFeedForward, GroupedQueryAttention, Layer, Mixer, RmsNorm
from loreloop.model.experts import Expert
from loreloop.model.families.family import Family, eos_ids
from loreloop.model.families.table import family_of
from loreloop.model.latent import NORM_EPS, Heads, LatentAttention, LatentParts
from loreloop.model.linear import BaseLinear, Products
from loreloop.model.routed import RoutedFeedForward, Router
from loreloop.model.spec import DecoderSpec, LatentSpec, MoeSpec
from loreloop.model.weights import decoder_weights
from loreloop.protocol.errors import BadRequest

LEAST_OUTPUTS = 16
IGNORED_SUFFIXES = ("rotary_emb.inv_freq",)  # old checkpoints store what the configuration already says


def read_config_file(file: Path) -> dict[str, Any]:
    """A configuration by itself."""
    try:
        config = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise BadRequest(f"{file.parent} is not a model folder: {file.name} cannot be read ({error}).") from None
    if not isinstance(config, dict):
        raise BadRequest(f"{file} is not a model's configuration: it is no JSON object.")
    return config


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json`, with the stop ids of `generation_config.json` where it names them."""
    config = read_config_file(folder / "config.json")
    try:
        generation = folder / "generation_config.json"
        named = eos_ids(json.loads(generation.read_text()).get("eos_token_id")) if generation.exists() else ()
        config["eos_token_id"] = list(dict.fromkeys((*eos_ids(config.get("eos_token_id")), *named)))
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise BadRequest(f"{folder} is not a model folder: its configuration cannot be read ({error}).") from None
    return config


def read_spec(folder: Path) -> DecoderSpec:
    return spec_of(read_config(folder), f"The config.json of {folder}")


def spec_of(config: dict[str, Any], source: str) -> DecoderSpec:
    """The decoder that a configuration describes; `source` is what an error calls it."""
    try:
        return family_of(config).spec(config)
    except (KeyError, TypeError, ValueError) as error:
        raise BadRequest(f"{source} lacks or misspells {error}.") from None


def load_decoder(folder: Path, *, dtype: torch.dtype, device: torch.device, products: Products) -> Decoder:
    """The model of `folder` in `dtype` on `device`."""
    spec, family = read_spec(folder), family_of(read_config(folder))
    places = _Places(spec, family, dtype, device)
    for name, tensor in stream_tensors(folder):
        if not name.endswith(IGNORED_SUFFIXES):
            places.put(name, tensor)
    places.check_complete(folder)
    return _assemble(spec, places, products)


def stream_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every published tensor of a folder, read one by one."""
    index = folder / "model.safetensors.index.json"
    if index.exists():  # other files beside the shards may hold the same weights once more
        shards = sorted({folder / file for file in json.loads(index.read_text())["weight_map"].values()})
    else:
        shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        raise BadRequest(f"{folder} holds no .safetensors file; other weight formats are not read.")
    for shard in shards:
        try:
            with safe_open(str(shard), framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a dict)
                    yield name, file.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise BadRequest(f"{shard} cannot be read: {error}.") from None


class _Places:
    """Empty tensors by role, and the map from published names to the rows they fill."""

    def __init__(self, spec: DecoderSpec, family: Family, dtype: torch.dtype, device: torch.device) -> None:
        self.spec, self.dtype = spec, dtype
        self.tensors: dict[str, Tensor] = {}
        self.targets: dict[str, Tensor] = {}
        self.tied_head = family.names.head if spec.tie_embeddings else None
        self.ignored = tuple(start.format(n_layers=spec.n_layers) for start in family.names.ignored)
        for weight in decoder_weights(spec, family.names):
            tensor = torch.empty(weight.shape, dtype=torch.float32 if weight.fp32 else dtype, device=device)
            self.tensors[weight.role] = tensor
            self.targets |= {piece.name: tensor[piece.rows] for piece in weight.pieces}

    def put(self, name: str, tensor: Tensor) -> None:
        if name == self.tied_head or name.startswith(self.ignored):
            return  # a copy of the embedding, or no part of the decoder
        target = self.targets.pop(name, None)
        if target is None:
            raise BadRequest(f"The folder holds a tensor {name!r} that this {self.spec.family} model has no place for.")
        if target.shape != tensor.shape:
            raise BadRequest(f"{name!r} has the shape {list(tensor.shape)}; it should be {list(target.shape)}.")
        target.copy_(tensor)

    def check_complete(self, folder: Path) -> None:
        if self.targets:
            missing = sorted(self.targets)
            raise BadRequest(f"{folder} lacks {len(missing)} tensors, among them {', '.join(missing[:5])}.")


def _assemble(spec: DecoderSpec, places: _Places, products: Products) -> Decoder:
    parts = _Parts(spec, places, products)
    head = BaseLinear(places.tensors["embedding" if spec.tie_embeddings else "head"], None, products)
    layers = [parts.layer(index) for index in range(spec.n_layers)]
    return Decoder(spec, places.tensors["embedding"], layers, parts.norm("final_norm"), head)


class _Parts:
    """Plugs a decoder's parts together from filled places."""

    def __init__(self, spec: DecoderSpec, places: _Places, products: Products) -> None:
        self.spec, self.at, self.dtype, self.products = spec, places.tensors, places.dtype, products

    def norm(self, role: str) -> RmsNorm:
        return RmsNorm(self.at[role], self.spec.norm_eps, self.dtype)

    def linear(self, role: str) -> BaseLinear:
        return BaseLinear(self.at[role], self.at.get(f"{role}.bias"), self.products)

    def layer(self, index: int) -> Layer:
        attention = self._latent(index, self.spec.latent) if self.spec.latent else self._grouped(index)
        feed_forward: Mixer
        if self.spec.moe and self.spec.routes(index):
            feed_forward = self._routed(index, self.spec.moe)
        else:
            feed_forward = self._gated(index, "")
        return Layer(
            self.norm(f"{index}.attention_norm"), attention, self.norm(f"{index}.feed_forward_norm"), feed_forward
        )

    def _grouped(self, index: int) -> Mixer:
        head_norms = (self.norm(f"{index}.q_norm"), self.norm(f"{index}.k_norm")) if self.spec.qk_norm else None
        return GroupedQueryAttention(
            index, self.spec, self.linear(f"{index}.qkv"), self.linear(f"{index}.o"), head_norms
        )

    def _latent(self, index: int, latent: LatentSpec) -> Mixer:
        def norm(role: str) -> RmsNorm:
            return RmsNorm(self.at[f"{index}.{role}"], NORM_EPS, self.dtype)

        query = (norm("q_a_norm"), self.linear(f"{index}.q_b")) if latent.q_rank is not None else None
        heads = Heads(latent, self.spec.n_heads, self.linear(f"{index}.kv_b"))
        q_kv_a, o = self.linear(f"{index}.q_kv_a"), self.linear(f"{index}.o")
        return LatentAttention(index, latent, LatentParts(q_kv_a, norm("kv_a_norm"), heads, o, query))

    def _gated(self, index: int, site: str) -> GatedFeedForward:
        gate_up, down = (self.linear(f"{index}.{site}{name}") for name in ("gate_up", "down"))
        return GatedFeedForward(index, gate_up, down, site)

    def _routed(self, index: int, moe: MoeSpec) -> Mixer:
        # In fp32 a product of few outputs may depend on its neighbours (see TiledProducts), so there are always some.
        weight_ED = F.pad(self.at[f"{index}.router"], (0, 0, 0, max(0, LEAST_OUTPUTS - moe.n_experts)))
        router = Router(index, moe, BaseLinear(weight_ED, None, self.products), self.at.get(f"{index}.router_bias"))
        experts = [
            Expert(self.linear(f"{index}.{expert}.gate_up"), self.linear(f"{index}.{expert}.down"))
            for expert in range(moe.n_experts)
        ]
        return RoutedFeedForward(index, router, experts, self._gated(index, "shared.") if moe.d_shared else None)

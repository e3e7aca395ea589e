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

from loreloop.model.decoder import Decoder, GatedFeedForward, GroupedQueryAttention, Layer, RmsNorm
from loreloop.model.families.family import Family, eos_ids
from loreloop.model.families.table import family_of
from loreloop.model.linear import BaseLinear, Products
from loreloop.model.lora import site_shapes
from loreloop.model.spec import DecoderSpec
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.training import LoraSpec

ALL_SITES = LoraSpec(rank=1, seed=0, train_unembed=False)
IGNORED_SUFFIXES = ("rotary_emb.inv_freq",)  # old checkpoints store what the configuration already says


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json`, with the stop ids of `generation_config.json` where it names them."""
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        generation = folder / "generation_config.json"
        named = eos_ids(json.loads(generation.read_text()).get("eos_token_id")) if generation.exists() else ()
        config["eos_token_id"] = list(dict.fromkeys((*eos_ids(config.get("eos_token_id")), *named)))
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise BadRequest(f"{folder} is not a model folder: its configuration cannot be read ({error}).") from None
    return config


def read_spec(folder: Path) -> DecoderSpec:
    config = read_config(folder)
    try:
        return family_of(config).spec(config)
    except (KeyError, TypeError, ValueError) as error:
        raise BadRequest(f"The config.json of {folder} lacks or misspells {error}.") from None


def load_decoder(folder: Path, *, dtype: torch.dtype, device: torch.device, products: Products) -> Decoder:
    """The model of `folder` in `dtype` on `device`."""
    spec, family = read_spec(folder), family_of(read_config(folder))
    places = _Places(spec, family, dtype, device)
    for name, tensor in _stream(folder):
        if not name.endswith(IGNORED_SUFFIXES):
            places.put(name, tensor)
    places.check_complete(folder)
    return _assemble(spec, places, products)


def _stream(folder: Path) -> Iterator[tuple[str, Tensor]]:
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
        self.spec, self.dtype, self.device = spec, dtype, device
        self.tensors: dict[str, Tensor] = {}
        self.targets: dict[str, Tensor] = {}
        names = family.names
        self._whole("embedding", names.embedding, (spec.vocab_size, spec.d_model))
        self._whole("final_norm", names.final_norm, (spec.d_model,))
        self.tied_head = names.head if spec.tie_embeddings else None
        if not spec.tie_embeddings:
            self._whole("head", names.head, (spec.vocab_size, spec.d_model))
        for layer in range(spec.n_layers):
            self._add_layer(layer, family)

    def _add_layer(self, layer: int, family: Family) -> None:
        names, spec = family.names, self.spec
        for role in ("attention_norm", "feed_forward_norm"):
            self._whole(f"{layer}.{role}", getattr(names, role).format(layer=layer), (spec.d_model,))
        if spec.qk_norm:
            self._whole(f"{layer}.q_norm", names.q_norm.format(layer=layer), (spec.d_head,))
            self._whole(f"{layer}.k_norm", names.k_norm.format(layer=layer), (spec.d_head,))
        for site, shape in site_shapes(spec, ALL_SITES).items():
            prefix = {part.start: names.projection.format(layer=layer, part=part.name) for part in shape.parts}
            d_out = sum(part.d_out for part in shape.parts)
            weight = self._new(f"{layer}.{site}", (d_out, shape.d_in))
            bias = self._new(f"{layer}.{site}.bias", (d_out,)) if site == "qkv" and spec.qkv_bias else None
            for part in shape.parts:
                rows = slice(part.start, part.start + part.d_out)
                self.targets[f"{prefix[part.start]}.weight"] = weight[rows]
                if bias is not None:
                    self.targets[f"{prefix[part.start]}.bias"] = bias[rows]

    def _new(self, role: str, shape: tuple[int, ...]) -> Tensor:
        self.tensors[role] = torch.empty(shape, dtype=self.dtype, device=self.device)
        return self.tensors[role]

    def _whole(self, role: str, name: str, shape: tuple[int, ...]) -> None:
        self.targets[name] = self._new(role, shape)

    def put(self, name: str, tensor: Tensor) -> None:
        if name == self.tied_head:
            return  # a copy of the embedding
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
    at = places.tensors

    def norm(role: str) -> RmsNorm:
        return RmsNorm(at[role], spec.norm_eps, places.dtype)

    def linear(role: str) -> BaseLinear:
        return BaseLinear(at[role], at.get(f"{role}.bias"), products)

    def layer(index: int) -> Layer:
        head_norms = (norm(f"{index}.q_norm"), norm(f"{index}.k_norm")) if spec.qk_norm else None
        return Layer(
            norm(f"{index}.attention_norm"),
            GroupedQueryAttention(index, spec, linear(f"{index}.qkv"), linear(f"{index}.o"), head_norms),
            norm(f"{index}.feed_forward_norm"),
            GatedFeedForward(index, linear(f"{index}.gate_up"), linear(f"{index}.down")),
        )

    head = BaseLinear(at["embedding" if spec.tie_embeddings else "head"], None, products)
    layers = [layer(index) for index in range(spec.n_layers)]
    return Decoder(spec, at["embedding"], layers, norm("final_norm"), head)

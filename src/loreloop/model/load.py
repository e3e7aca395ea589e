"""A published folder (config.json, safetensors) → a `Decoder`, streamed tensor by tensor into its place.

Fused weights are allocated once and their parts copied in, so that host memory holds the model and one tensor more.
Missing, extra and wrongly shaped tensors are refused by name; nothing in the folder is ever executed.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from loreloop.model.blocks import Blocks, has_blocks, read_blocks
from loreloop.model.decoder import Decoder, GatedFeedForward, GroupedQueryAttention, Layer, RmsNorm
from loreloop.model.families.family import Family, eos_ids
from loreloop.model.families.table import family_of
from loreloop.model.linear import BaseLinear, Products
from loreloop.model.lora import site_shapes
from loreloop.model.packed import PackedWeight, packable
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


def load_decoder(
    folder: Path, *, dtype: torch.dtype, device: torch.device, products: Products, quantize: bool = False
) -> Decoder:
    """The model of `folder` in `dtype` on `device`; with `quantize`, its matrices packed into 4 bits, and embedding and
    head into 8: by the model's own blocks where it has them, else rounded."""
    spec, family = read_spec(folder), family_of(read_config(folder))
    own = quantize and has_blocks(folder)
    places = _Places(spec, family, dtype, device, (OWN_BLOCKS if own else ROUNDED) if quantize else None)
    for name, blocks in read_blocks(folder) if own else ():
        places.put_blocks(name, blocks)
    for name, read in _stream(folder):
        if not name.endswith(IGNORED_SUFFIXES) and name not in places.packed:
            places.put(name, read())
    places.check_complete(folder)
    return _assemble(spec, places, products)


def _stream(folder: Path) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """The names of a folder's tensors, each with what reads it."""
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
                    yield name, functools.partial(file.get_tensor, name)
        except (OSError, SafetensorError) as error:
            raise BadRequest(f"{shard} cannot be read: {error}.") from None


@dataclass(frozen=True)
class _Packing:
    """How weights are packed: the dtype of their scales, and whether 4-bit codes have offsets."""

    dtype: torch.dtype
    offsets: bool


OWN_BLOCKS = _Packing(torch.float16, offsets=True)
ROUNDED = _Packing(torch.bfloat16, offsets=False)


class _Places:
    """Empty tensors by role, and the map from published names to the rows they fill."""

    def __init__(
        self,
        spec: DecoderSpec,
        family: Family,
        dtype: torch.dtype,
        device: torch.device,
        packing: _Packing | None = None,
    ) -> None:
        self.spec, self.dtype, self.device, self.packing = spec, dtype, device, packing
        self.tensors: dict[str, Tensor] = {}
        self.weights: dict[str, Tensor | PackedWeight] = {}
        self.targets: dict[str, Tensor | PackedWeight] = {}
        self.packed: set[str] = set()  # names of weights whose blocks are in place
        names = family.names
        self.targets[names.embedding] = self._matrix("embedding", (spec.vocab_size, spec.d_model), 8)
        self._whole("final_norm", names.final_norm, (spec.d_model,))
        self.tied_head = names.head if spec.tie_embeddings else None
        if not spec.tie_embeddings:
            self.targets[names.head] = self._matrix("head", (spec.vocab_size, spec.d_model), 8)
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
            starts = [part.start for part in shape.parts]
            weight = self._matrix(f"{layer}.{site}", (d_out, shape.d_in), 4, starts)
            bias = self._new(f"{layer}.{site}.bias", (d_out,)) if site == "qkv" and spec.qkv_bias else None
            for part in shape.parts:
                rows = slice(part.start, part.start + part.d_out)
                self.targets[f"{prefix[part.start]}.weight"] = weight[rows]
                if bias is not None:
                    self.targets[f"{prefix[part.start]}.bias"] = bias[rows]

    def _new(self, role: str, shape: tuple[int, ...]) -> Tensor:
        self.tensors[role] = torch.empty(shape, dtype=self.dtype, device=self.device)
        return self.tensors[role]

    def _matrix(
        self, role: str, shape: tuple[int, int], bits: int, starts: Sequence[int] = ()
    ) -> Tensor | PackedWeight:
        """Room for a matrix, whose parts begin at the rows `starts`."""
        if self.packing and packable(shape, starts):
            offsets = self.packing.offsets and bits == 4
            self.weights[role] = PackedWeight.empty(shape, bits, self.packing.dtype, offsets=offsets)
        else:
            self.weights[role] = self._new(role, shape)
        return self.weights[role]

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

    def put_blocks(self, name: str, blocks: Blocks) -> None:
        target = self.targets.get(name)
        if not isinstance(target, PackedWeight) or target.shape != blocks.code_OI.shape:
            raise BadRequest(f"The blocks of {name!r} fit no weight of this {self.spec.family} model; add it again.")
        blocks.fill(target)
        del self.targets[name]
        self.packed.add(name)

    def check_complete(self, folder: Path) -> None:
        if self.targets:
            missing = sorted(self.targets)
            raise BadRequest(f"{folder} lacks {len(missing)} tensors, among them {', '.join(missing[:5])}.")


def _assemble(spec: DecoderSpec, places: _Places, products: Products) -> Decoder:
    at = places.tensors

    def norm(role: str) -> RmsNorm:
        return RmsNorm(at[role], spec.norm_eps, places.dtype)

    def linear(role: str) -> BaseLinear:
        return BaseLinear(places.weights[role], at.get(f"{role}.bias"), products)

    def layer(index: int) -> Layer:
        head_norms = (norm(f"{index}.q_norm"), norm(f"{index}.k_norm")) if spec.qk_norm else None
        return Layer(
            norm(f"{index}.attention_norm"),
            GroupedQueryAttention(index, spec, linear(f"{index}.qkv"), linear(f"{index}.o"), head_norms),
            norm(f"{index}.feed_forward_norm"),
            GatedFeedForward(index, linear(f"{index}.gate_up"), linear(f"{index}.down")),
        )

    head = linear("embedding" if spec.tie_embeddings else "head")
    layers = [layer(index) for index in range(spec.n_layers)]
    return Decoder(spec, places.weights["embedding"], layers, norm("final_norm"), head)

"""The decoder: one layer loop over packed tokens, with its parts plugged in.

Tokens in, hidden states out. Sequences are laid end to end; which token may see which is the business of the
`Attend` that the caller hands in, and so are caches. The residual stream is fp32, products run in the compute dtype.

Legend: T tokens, D model width, H query heads, G key/value heads, N heads of all kinds (or rows of images), E head
width, L width of a latent, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from loreloop.model.linear import BaseLinear, rows_of
from loreloop.model.lora import Adapters
from loreloop.model.packed_weights import PackedWeight
from loreloop.model.pointwise import add_rms_norm, gated_silu, rms_norm
from loreloop.model.rope import Rope, RopeTable
from loreloop.model.spec import DecoderSpec


class Attend(Protocol):
    """Attention of a layer over whatever keys the caller keeps. Queries and keys come before `rope` has turned them.

    Shapes: (T, H, E), (T, G, E), (T, G, E) → (T, H, E).
    """

    def __call__(self, layer: int, q_THE: Tensor, k_TGE: Tensor, v_TGE: Tensor, rope: Rope) -> Tensor: ...

    def latent(self, layer: int, q_THE: Tensor, latent_TL: Tensor, heads: LatentHeads, lora: Adapters) -> Tensor:
        """The same over latents, with queries and latents turned already. Gives (T, H, V)."""
        ...


class LatentHeads(Protocol):
    """What latents mean to heads; see `latent_attention.py`."""

    def scaled(self, q_THE: Tensor) -> Tensor:
        """Queries (T, H, E) multiplied by what attention's own scaling lacks to the family's."""
        ...

    def expand(self, latent_TL: Tensor, lora: Adapters, layer: int) -> tuple[Tensor, Tensor]:
        """Keys (T, H, E) and values (T, H, V) of latents (T, L), with the adapter's part of their product."""
        ...

    def absorb(self, q_THE: Tensor) -> Tensor:
        """Queries (T, H, L) that give over latents the scores that `q_THE` gives over expanded keys."""
        ...

    def values(self, o_THL: Tensor) -> Tensor:
        """Outputs (T, H, V) from those of attention over latents, (T, H, L)."""
        ...


class Mixer(Protocol):
    """A part of a layer: normed hidden states in, an addition to the residual stream out, both in compute dtype."""

    def __call__(self, x_TD: Tensor, rope: Rope, attend: Attend, lora: Adapters) -> Tensor: ...


class RmsNorm:
    """x / rms(x) · weight, computed in fp32 and given in the compute dtype."""

    def __init__(self, weight_D: Tensor, eps: float, dtype: torch.dtype) -> None:
        # The norm is computed in fp32 anyway, and a weight that is fp32 already saves a conversion at every layer.
        self.weight_D, self.eps, self.dtype = weight_D.float(), eps, dtype

    def __call__(self, x_TD: Tensor) -> Tensor:
        return rms_norm(x_TD, self.weight_D, self.eps, self.dtype)

    def after_adding(self, x_TD: Tensor, delta_TD: Tensor) -> tuple[Tensor, Tensor]:
        """x + delta in fp32, and its norm."""
        return add_rms_norm(x_TD, delta_TD, self.weight_D, self.eps, self.dtype)


class GroupedQueryAttention:
    """Fused q/k/v product, optional norms of queries and keys, rotation, attention, output product."""

    def __init__(
        self, layer: int, spec: DecoderSpec, qkv: BaseLinear, o: BaseLinear, head_norms: tuple[RmsNorm, RmsNorm] | None
    ) -> None:
        self.layer, self.spec, self.qkv, self.o, self.head_norms = layer, spec, qkv, o, head_norms

    def __call__(self, x_TD: Tensor, rope: Rope, attend: Attend, lora: Adapters) -> Tensor:
        spec = self.spec
        qkv = lora.linear(x_TD, self.qkv, self.layer, "qkv")
        # The three projections are one product, since their input is the same and a few wide products beat many narrow
        # ones.
        heads_TNE = qkv.view(-1, spec.n_heads + 2 * spec.n_kv_heads, spec.d_head)
        q_THE, k_TGE, v_TGE = heads_TNE.split((spec.n_heads, spec.n_kv_heads, spec.n_kv_heads), dim=1)
        if self.head_norms:
            q_norm, k_norm = self.head_norms
            # These models norm each head by itself, before rotation: the angles must act on what is normed.
            q_THE, k_TGE = q_norm(q_THE), k_norm(k_TGE)
        o_THE = attend(self.layer, q_THE, k_TGE, v_TGE, rope)
        return lora.linear(o_THE.flatten(1), self.o, self.layer, "o")


class GatedFeedForward:
    """down(silu(gate(x)) · up(x)), gate and up in one product. `site` begins the names of its two products."""

    def __init__(self, layer: int, gate_up: BaseLinear, down: BaseLinear, site: str = "") -> None:
        self.layer, self.gate_up, self.down, self.site = layer, gate_up, down, site

    def __call__(self, x_TD: Tensor, rope: Rope, attend: Attend, lora: Adapters) -> Tensor:
        gate_up = lora.linear(x_TD, self.gate_up, self.layer, f"{self.site}gate_up")
        return lora.linear(gated_silu(gate_up), self.down, self.layer, f"{self.site}down")


@dataclass(frozen=True)
class ImageRows:
    """Rows of a batch that hold image tokens (N), what enters the decoder there (N, D), and what is added to the
    residual stream behind each of the first layers, (N, D) each."""

    rows_N: Tensor
    embedding_ND: Tensor
    additions: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Layer:
    """Two mixers, each behind its norm. A family may plug in others."""

    attention_norm: RmsNorm
    attention: Mixer
    feed_forward_norm: RmsNorm
    feed_forward: Mixer


class Decoder:
    """A frozen base model. `layer` is called once per layer by whoever drives it, so that work can pause in between."""

    def __init__(
        self,
        spec: DecoderSpec,
        embedding_VD: Tensor | PackedWeight,
        layers: Sequence[Layer],
        final_norm: RmsNorm,
        head: BaseLinear,
    ) -> None:
        self.spec, self.embedding_VD, self.layers = spec, embedding_VD, layers
        self.final_norm, self.head = final_norm, head
        self.rope_table = RopeTable(spec.rope, spec.d_turned, self.device)

    @property
    def device(self) -> torch.device:
        """Where the weights lie and all products run."""
        return self.final_norm.weight_D.device

    @property
    def dtype(self) -> torch.dtype:
        """The compute dtype, which is that of normed hidden states and of keys and values."""
        return self.final_norm.dtype

    def embed(self, tokens_T: Tensor, images: ImageRows | None = None) -> Tensor:
        """(T,) int64 → (T, D) fp32, the residual stream. Ids of image rows are of no vocabulary."""
        if images is None:
            return rows_of(self.embedding_VD, tokens_T).float()
        # Ids of images lie below zero and have no row. They look up row 0, which is overwritten in the next step.
        x_TD = rows_of(self.embedding_VD, tokens_T.clamp(min=0)).float()
        return x_TD.index_copy(0, images.rows_N, images.embedding_ND.float())

    def rope(self, positions: Tensor) -> Rope:
        """The angles of positions (T,), or (T, 3) where time, row and column of images differ."""
        return self.rope_table.at(positions)

    def layer(
        self, index: int, x_TD: Tensor, rope: Rope, attend: Attend, lora: Adapters, images: ImageRows | None = None
    ) -> Tensor:
        """One layer over the residual stream, fp32 in and out."""
        layer = self.layers[index]
        delta_TD = layer.attention(layer.attention_norm(x_TD), rope, attend, lora)
        # Adding and norming in one step reads the residual stream once instead of twice.
        x_TD, normed_TD = layer.feed_forward_norm.after_adding(x_TD, delta_TD)
        x_TD = x_TD + layer.feed_forward(normed_TD, rope, attend, lora)
        # Some towers have further features of the same image for the first layers, which are added behind them.
        if images is not None and index < len(images.additions):
            x_TD = x_TD.index_add(0, images.rows_N, images.additions[index].float())
        return x_TD

    def final(self, x_TD: Tensor) -> Tensor:
        """(T, D) fp32 → (T, D) in the compute dtype, ready for the head."""
        return self.final_norm(x_TD)

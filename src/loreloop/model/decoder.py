"""The decoder: one layer loop over packed tokens, with its parts plugged in.

Tokens in, hidden states out. Sequences are laid end to end; which token may see which is the business of the
`Attend` that the caller hands in, and so are caches. The residual stream is fp32, products run in the compute dtype.

Legend: T tokens, D model width, H query heads, G key/value heads, N heads of all kinds (or rows of images), E head
width, L width of a latent, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from loreloop.model.attention_rules import AttentionRules
from loreloop.model.attention_spec import AttentionSpec
from loreloop.model.gates import Gate
from loreloop.model.linear import BaseLinear
from loreloop.model.lora import Adapters
from loreloop.model.packed_weights import PackedWeight
from loreloop.model.pointwise import add_rms_norm, rms_norm
from loreloop.model.rope import Rope, RopeTable
from loreloop.model.spec import DecoderSpec
from loreloop.model.vocabulary import WHOLE_VOCABULARY, Vocabulary


class Attend(Protocol):
    """Attention of a layer over whatever keys the caller keeps. Queries and keys come before `rope` has turned them.

    Shapes: (T, H, E), (T, G, E), (T, G, E) → (T, H, E).
    """

    def __call__(
        self, layer: int, q_THE: Tensor, k_TGE: Tensor, v_TGE: Tensor, rope: Rope, rules: AttentionRules
    ) -> Tensor: ...

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


class Unnormed:
    """In the place of a norm, for families that norm what a part gives and not what it takes."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __call__(self, x_TD: Tensor) -> Tensor:
        return x_TD.to(self.dtype)

    def after_adding(self, x_TD: Tensor, delta_TD: Tensor) -> tuple[Tensor, Tensor]:
        """x + delta in fp32, and the same in the compute dtype."""
        sum_TD = x_TD + delta_TD
        return sum_TD, sum_TD.to(self.dtype)


HeadNorm = Callable[[Tensor], Tensor]  # of queries, or of keys


@dataclass(frozen=True)
class AttentionParts:
    """The fused q/k/v product, the output product, and norms of queries and keys: none, of every head by itself, or
    (`whole`) of all heads side by side. `query_scale` is what queries are multiplied by, since attention divides scores
    by the root of the width alone."""

    qkv: BaseLinear
    o: BaseLinear
    norms: tuple[HeadNorm, HeadNorm] | None
    whole: bool
    query_scale: float
    rules: AttentionRules


class GroupedQueryAttention:
    """Fused q/k/v product, optional norms of queries and keys, rotation, attention, output product."""

    def __init__(self, layer: int, spec: DecoderSpec, parts: AttentionParts) -> None:
        self.layer, self.spec, self.parts = layer, spec, parts
        self.qkv, self.o = parts.qkv, parts.o

    def __call__(self, x_TD: Tensor, rope: Rope, attend: Attend, lora: Adapters) -> Tensor:
        spec, parts = self.spec, self.parts
        qkv = lora.linear(x_TD, self.qkv, self.layer, "qkv")
        # The three projections are one product, since their input is the same and a few wide products beat many narrow
        # ones.
        heads_TNE = qkv.view(-1, spec.n_heads + 2 * spec.n_kv_heads, spec.d_head)
        q_THE, k_TGE, v_TGE = heads_TNE.split((spec.n_heads, spec.n_kv_heads, spec.n_kv_heads), dim=1)
        if parts.norms:
            q_norm, k_norm = parts.norms
            # Normed before rotation: the angles must act on what is normed.
            if parts.whole:
                q_THE = q_norm(q_THE.flatten(1)).view(q_THE.shape)
                k_TGE = k_norm(k_TGE.flatten(1)).view(k_TGE.shape)
            else:
                q_THE, k_TGE = q_norm(q_THE), k_norm(k_TGE)
        if parts.query_scale != 1:
            q_THE = q_THE * parts.query_scale
        o_THE = attend(self.layer, rope.grown(q_THE), k_TGE, v_TGE, rope, parts.rules)
        return lora.linear(o_THE.flatten(1), self.o, self.layer, "o")


class GatedFeedForward:
    """down(act(gate(x)) · up(x)), gate and up in one product. `site` begins the names of its two products."""

    def __init__(self, layer: int, gate_up: BaseLinear, down: BaseLinear, gate: Gate, site: str = "") -> None:
        self.layer, self.gate_up, self.down, self.gate, self.site = layer, gate_up, down, gate, site

    def __call__(self, x_TD: Tensor, rope: Rope, attend: Attend, lora: Adapters) -> Tensor:
        gate_up = lora.linear(x_TD, self.gate_up, self.layer, f"{self.site}gate_up")
        return lora.linear(self.gate.forward(gate_up), self.down, self.layer, f"{self.site}down")


@dataclass(frozen=True)
class ImageRows:
    """Rows of a batch that hold image tokens (N), what enters the decoder there (N, D), and what is added to the
    residual stream behind each of the first layers, (N, D) each."""

    rows_N: Tensor
    embedding_ND: Tensor
    additions: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Layer:
    """Two mixers, each behind its norm, and perhaps before another. A family may plug in others."""

    attention_norm: RmsNorm | Unnormed
    attention: Mixer
    feed_forward_norm: RmsNorm | Unnormed
    feed_forward: Mixer
    attention_after: RmsNorm | None = None
    feed_forward_after: RmsNorm | None = None


@dataclass(frozen=True)
class Ropes:
    """The angles of a batch, for layers of each kind: ordinary ones, those with a window, those that turn nothing."""

    ordinary: Rope
    local: Rope
    still: Rope

    def of(self, attention: AttentionSpec, layer: int) -> Rope:
        """Those of one layer."""
        if layer in attention.unturned:
            return self.still
        return self.ordinary if attention.window(layer) is None else self.local


class Decoder:
    """A frozen base model. `layer` is called once per layer of `spec.layers` by whoever drives it, so that work can
    pause in between; `layers` are those, in their order."""

    def __init__(
        self,
        spec: DecoderSpec,
        embedding_VD: Tensor | PackedWeight,
        layers: Sequence[Layer],
        final_norm: RmsNorm,
        head: BaseLinear,
        vocabulary: Vocabulary = WHOLE_VOCABULARY,
    ) -> None:
        self.spec, self.embedding_VD, self.layers = spec, embedding_VD, layers
        self.final_norm, self.head, self.vocabulary = final_norm, head, vocabulary
        self.rope_table = RopeTable(spec.rope, spec.d_turned, self.device)
        local = spec.attention.local_rope
        self.local_rope_table = RopeTable(local, spec.d_turned, self.device) if local else None
        # Rounded as a model's own code rounds it, which multiplies in the compute dtype.
        self.embedding_scale = float(torch.tensor(spec.scales.embedding, dtype=self.dtype))

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
            return self._scaled(self.vocabulary.embed(self.embedding_VD, tokens_T))
        # Ids of images lie below zero and have no row. They look up row 0, which is overwritten in the next step.
        x_TD = self._scaled(self.vocabulary.embed(self.embedding_VD, tokens_T.clamp(min=0)))
        return x_TD.index_copy(0, images.rows_N, images.embedding_ND.float())

    def rows_here(self, n_rows: int) -> int:
        """How many of a batch's rows the residual stream has here."""
        return n_rows

    def _scaled(self, x_TD: Tensor) -> Tensor:
        return x_TD.float() if self.embedding_scale == 1 else x_TD.float() * self.embedding_scale

    def rope(self, positions: Tensor) -> Ropes:
        """The angles of positions (T,), or (T, 3) where time, row and column of images differ."""
        rope, attention = self.rope_table.at(positions), self.spec.attention
        local = self.local_rope_table.at(positions) if self.local_rope_table else rope
        return Ropes(rope, local, rope.still() if attention.unturned else rope)

    def layer(
        self, index: int, x_TD: Tensor, ropes: Ropes, attend: Attend, lora: Adapters, images: ImageRows | None = None
    ) -> Tensor:
        """One layer over the residual stream, fp32 in and out."""
        layer, rope = self.layers[index - self.spec.layers.start], ropes.of(self.spec.attention, index)
        delta_TD = layer.attention(layer.attention_norm(x_TD), rope, attend, lora)
        delta_TD = self._leaving(delta_TD, layer.attention_after)
        # Adding and norming in one step reads the residual stream once instead of twice.
        x_TD, normed_TD = layer.feed_forward_norm.after_adding(x_TD, delta_TD)
        delta_TD = layer.feed_forward(normed_TD, rope, attend, lora)
        x_TD = x_TD + self._leaving(delta_TD, layer.feed_forward_after)
        # Some towers have further features of the same image for the first layers, which are added behind them.
        if images is not None and index < len(images.additions):
            x_TD = x_TD.index_add(0, images.rows_N, images.additions[index].float())
        return x_TD

    def _leaving(self, delta_TD: Tensor, norm: RmsNorm | None) -> Tensor:
        """What a part of a layer adds to the residual stream, normed and scaled as the family has it."""
        if norm is not None:
            delta_TD = norm(delta_TD)
        scale = self.spec.scales.residual
        return delta_TD if scale == 1 else delta_TD * scale

    def final(self, x_TD: Tensor) -> Tensor:
        """(T, D) fp32 → (T, D) in the compute dtype, ready for the head."""
        h_TD, scale = self.final_norm(x_TD), self.spec.scales.logit
        # Scaling what the head takes scales its logits, and those of an adapter on it as well.
        return h_TD if scale == 1 else h_TD * scale

    def capped(self, logits_NV: Tensor) -> Tensor:
        """Logits as the family bounds them, from the head's product."""
        cap = self.spec.scales.logit_cap
        return logits_NV if cap is None else cap * torch.tanh(logits_NV / cap)

"""Latent attention: a token's keys and values are made from a few numbers that all heads share.

What a caller keeps of a token is its latent: `kv_rank` normed numbers, and `d_rope` more that are the turned part of
every head's key. Training makes keys and values from it (`expand`); sampling leaves it compressed and moves the
products over to queries and outputs (`absorb`, `values`), which is the same by the order of multiplication.

Legend: T tokens, D model width, H heads, E head width of queries and keys (N not turned, R turned), V that of values,
O what `kv_b` gives a head (N and V), C width of the latent's normed part, L = C + R.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from loreloop.model.decoder import Attend, RmsNorm
from loreloop.model.linear import BaseLinear
from loreloop.model.lora import Adapters
from loreloop.model.rope import Rope
from loreloop.model.spec import LatentSpec

NORM_EPS = 1e-6  # of the inner norms, whatever the configuration says of the others


class Heads:
    """The frozen map from latents to the keys and values of `n_heads` heads. Attention divides scores by the root of
    its width; queries are multiplied by what that lacks to the family's own scale."""

    def __init__(self, spec: LatentSpec, n_heads: int, kv_b: BaseLinear) -> None:
        self.spec, self.n_heads, self.kv_b = spec, n_heads, kv_b
        # Views of one tensor: absorbing must use the very numbers that expanding multiplies with.
        up_HNVC = kv_b.weight_OI.view(n_heads, spec.d_nope + spec.d_value, spec.kv_rank)
        self.key_up_HNC, self.value_up_HVC = up_HNVC.split((spec.d_nope, spec.d_value), 1)

    def scaled(self, q_THE: Tensor) -> Tensor:
        """Queries for attention over expanded keys."""
        return self._scaled(q_THE, q_THE.shape[-1])

    def expand(self, latent_TL: Tensor, lora: Adapters, layer: int) -> tuple[Tensor, Tensor]:
        """Keys (T, H, E) and values (T, H, V) of latents."""
        latent_TC, turned_TR = latent_TL.split((self.spec.kv_rank, self.spec.d_rope), -1)
        kv_THO = lora.linear(latent_TC, self.kv_b, layer, "kv_b").unflatten(-1, (self.n_heads, -1))
        k_THN, v_THV = kv_THO.split((self.spec.d_nope, self.spec.d_value), -1)
        # The turned part is one for all heads, and is repeated only here, where training needs whole keys.
        return torch.cat((k_THN, turned_TR[:, None].expand(-1, self.n_heads, -1)), -1), v_THV

    def absorb(self, q_THE: Tensor) -> Tensor:
        """Queries (T, H, L) for attention over the latents themselves, which are keys and values of one head."""
        q_THN, q_THR = q_THE.split((self.spec.d_nope, self.spec.d_rope), -1)
        # q · (U · latent) is (Uᵀ · q) · latent: the product moves from every key to the one query.
        q_THC = torch.bmm(q_THN.transpose(0, 1), self.key_up_HNC).transpose(0, 1)
        return self._scaled(torch.cat((q_THC, q_THR), -1), self.spec.kv_rank + self.spec.d_rope)

    def values(self, o_THL: Tensor) -> Tensor:
        """What attention over latents gave, as outputs (T, H, V)."""
        o_HTC = o_THL[..., : self.spec.kv_rank].transpose(0, 1)
        return torch.bmm(o_HTC, self.value_up_HVC.transpose(1, 2)).transpose(0, 1)

    def _scaled(self, q_THE: Tensor, width: int) -> Tensor:
        # Attention divides by the root of the width that it sees, and absorbed queries have another width.
        factor = self.spec.softmax_scale * math.sqrt(width)
        # The common case, in which families scale as attention does; a pass over all queries is saved.
        return q_THE if math.isclose(factor, 1.0) else q_THE * factor


@dataclass(frozen=True)
class LatentParts:
    """Queries' and latents' first product, the latents' norm, heads, output product; norm and second product of
    queries where these have a rank of their own."""

    q_kv_a: BaseLinear
    kv_norm: RmsNorm
    heads: Heads
    o: BaseLinear
    query: tuple[RmsNorm, BaseLinear] | None


class LatentAttention:
    """Queries and latents in one product, norms of both, heads, output product."""

    def __init__(self, layer: int, spec: LatentSpec, parts: LatentParts) -> None:
        self.layer, self.spec, self.parts = layer, spec, parts

    def __call__(self, x_TD: Tensor, rope: Rope, attend: Attend, lora: Adapters) -> Tensor:
        spec, parts = self.spec, self.parts
        inner = lora.linear(x_TD, parts.q_kv_a, self.layer, "q_kv_a")
        # The product may carry queries themselves or their low-rank form, and only its width tells.
        d_query = inner.shape[1] - spec.kv_rank - spec.d_rope
        q, latent_TC, k_TR = inner.split((d_query, spec.kv_rank, spec.d_rope), -1)
        if parts.query:
            norm, q_b = parts.query
            q = lora.linear(norm(q), q_b, self.layer, "q_b")
        q_THN, q_THR = q.unflatten(1, (parts.heads.n_heads, -1)).split((spec.d_nope, spec.d_rope), -1)
        # Only the last `d_rope` numbers carry a position; the others are compared wherever their tokens stand.
        q_THR, k_TR = rope.rotate(self._halves(q_THR)), rope.rotate(self._halves(k_TR)[:, None])[:, 0]
        # Stored normed and turned, so that a cached latent is used as it is.
        latent_TL = torch.cat((parts.kv_norm(latent_TC), k_TR), -1)
        o_THV = attend.latent(self.layer, torch.cat((q_THN, q_THR), -1), latent_TL, parts.heads, lora)
        return lora.linear(o_THV.flatten(1), parts.o, self.layer, "o")

    def _halves(self, x: Tensor) -> Tensor:
        """Pairs that are published side by side, laid out as first and second halves."""
        # Rotation here pairs the two halves of a head. Reordering both queries and keys alike leaves their products
        # unchanged.
        if not self.spec.neighbours_turn:
            return x
        return x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)

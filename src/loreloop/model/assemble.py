"""Weights by role → a `Decoder`, its parts plugged together as its spec says. Knows no files.

Legend: O outputs, E experts, D model width, H query heads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from loreloop.model.attention_rules import AttentionRules
from loreloop.model.decoder import (
    AttentionParts,
    Decoder,
    GatedFeedForward,
    GroupedQueryAttention,
    Layer,
    Mixer,
    RmsNorm,
    Unnormed,
)
from loreloop.model.expert_products import Expert, ExpertProducts
from loreloop.model.gates import GATES
from loreloop.model.latent_attention import NORM_EPS, Heads, LatentAttention, LatentParts
from loreloop.model.linear import BaseLinear, Products
from loreloop.model.packed_weights import PackedWeight
from loreloop.model.routed_feed_forward import RoutedFeedForward, Router
from loreloop.model.spec import DecoderSpec, LatentSpec, MoeSpec

LEAST_OUTPUTS = 16


def assemble(parts: Parts) -> Decoder:
    """The decoder of a spec, with its parts made from `parts`. KeyError names a role for which there is no weight."""
    spec = parts.spec
    # Tied embeddings share one tensor, so the head reads the embedding's memory and no second copy is made.
    head = parts.linear("embedding" if spec.tie_embeddings else "head") if spec.has_head else parts.no_head()
    layers = [parts.layer(index) for index in spec.layers]
    return Decoder(spec, parts.weights["embedding"], layers, parts.norm("final_norm"), head)


class Parts:
    """Makes the parts of a decoder from its weights by role (`weights.py`)."""

    def __init__(
        self, spec: DecoderSpec, weights: Mapping[str, Tensor | PackedWeight], dtype: torch.dtype, products: Products
    ) -> None:
        self.spec, self.weights, self.dtype, self.products = spec, weights, dtype, products

    def tensor(self, role: str) -> Tensor:
        """A weight that is never packed."""
        weight = self.weights[role]
        # Norms and biases are added and multiplied directly, for which packed weights have no operation.
        assert isinstance(weight, Tensor), role
        return weight

    def norm(self, role: str) -> RmsNorm:
        """The norm whose weight has this role, with the epsilon of the spec."""
        weight_D = self.tensor(role)
        if self.spec.norm_offset:
            # Added in fp32: these families publish what a weight differs from one, which bf16 would round away.
            weight_D = weight_D.float() + self.spec.norm_offset
        return RmsNorm(weight_D, self.spec.norm_eps, self.dtype)

    def linear(self, role: str) -> BaseLinear:
        """The frozen product whose weight has this role, with the bias of the same role if there is one."""
        bias_O = self.tensor(f"{role}.bias") if f"{role}.bias" in self.weights else None
        return BaseLinear(self.weights[role], bias_O, self.products)

    def no_head(self) -> BaseLinear:
        """What stands for the head where it lies elsewhere: a product without outputs."""
        return BaseLinear(self.tensor("final_norm").new_empty(0, self.spec.d_model), None, self.products)

    def layer(self, index: int) -> Layer:
        """Layer `index` with the kind of attention and of feed-forward that the spec gives it."""
        attention = self._latent(index, self.spec.latent) if self.spec.latent else self._grouped(index)
        feed_forward: Mixer
        if self.spec.moe and self.spec.routes(index):
            feed_forward = self._routed(index, self.spec.moe)
        else:
            feed_forward = self._gated(index, "")
        before, after = self.spec.norms != "after", self.spec.norms != "before"

        def entering(role: str) -> RmsNorm | Unnormed:
            return self.norm(f"{index}.{role}") if before else Unnormed(self.dtype)

        return Layer(
            attention_norm=entering("attention_norm"),
            attention=attention,
            feed_forward_norm=entering("feed_forward_norm"),
            feed_forward=feed_forward,
            attention_after=self.norm(f"{index}.attention_after") if after else None,
            feed_forward_after=self.norm(f"{index}.feed_forward_after") if after else None,
        )

    def _grouped(self, index: int) -> Mixer:
        spec, about = self.spec, self.spec.attention
        normed = spec.qk_norm != "none"
        sinks_H = self.tensor(f"{index}.sinks").float() if about.sinks else None
        parts = AttentionParts(
            qkv=self.linear(f"{index}.qkv"),
            o=self.linear(f"{index}.o"),
            norms=(self.norm(f"{index}.q_norm"), self.norm(f"{index}.k_norm")) if normed else None,
            whole=spec.qk_norm == "whole",
            # Scores are divided by the root of the width wherever they are computed.
            query_scale=1.0 if about.scale is None else about.scale * math.sqrt(spec.d_head),
            rules=AttentionRules(about.window(index), about.cap, sinks_H),
        )
        return GroupedQueryAttention(index, spec, parts)

    def _latent(self, index: int, latent: LatentSpec) -> Mixer:
        def norm(role: str) -> RmsNorm:
            return RmsNorm(self.tensor(f"{index}.{role}"), NORM_EPS, self.dtype)

        # Small models of this family project queries straight from the hidden state, without a rank of their own.
        query = (norm("q_a_norm"), self.linear(f"{index}.q_b")) if latent.q_rank is not None else None
        heads = Heads(latent, self.spec.n_heads, self.linear(f"{index}.kv_b"))
        q_kv_a, o = self.linear(f"{index}.q_kv_a"), self.linear(f"{index}.o")
        return LatentAttention(index, latent, LatentParts(q_kv_a, norm("kv_a_norm"), heads, o, query))

    def _gated(self, index: int, site: str) -> GatedFeedForward:
        gate_up, down = (self.linear(f"{index}.{site}{name}") for name in ("gate_up", "down"))
        return GatedFeedForward(index, gate_up, down, GATES[self.spec.activation], site)

    def _routed(self, index: int, moe: MoeSpec) -> Mixer:
        # In fp32 a product of few outputs may depend on its neighbours (see TiledProducts), so there are always some.
        bias_E = self.tensor(f"{index}.router_bias") if moe.scoring == "sigmoid" else None
        weight_ED = F.pad(self.tensor(f"{index}.router"), (0, 0, 0, max(0, LEAST_OUTPUTS - moe.n_experts)))
        router_bias_E = None
        if moe.biases:
            router_bias_E = F.pad(self.tensor(f"{index}.router.bias"), (0, len(weight_ED) - moe.n_experts))
        router = Router(index, moe, BaseLinear(weight_ED, router_bias_E, self.products), bias_E)
        experts = [
            Expert(self.linear(f"{index}.{expert}.gate_up"), self.linear(f"{index}.{expert}.down"))
            for expert in moe.here
        ]
        shared = self._gated(index, "shared.") if moe.d_shared else None
        first = None if moe.held is None else moe.here.start
        return RoutedFeedForward(index, router, ExpertProducts(experts, GATES[self.spec.activation], first), shared)

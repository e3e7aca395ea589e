"""A feed-forward of many experts: a router sends every token to a few of them, and to the shared one.

The router is frozen; gradients flow through its scores to the hidden state. Choosing is per token, so that it does not
depend on the batch.

Legend: T tokens, D model width, E experts, K experts a token, G groups of experts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from loreloop.model.decoder import Attend, GatedFeedForward
from loreloop.model.expert_products import ExpertProducts, experts_sum
from loreloop.model.linear import BaseLinear
from loreloop.model.lora import Adapters
from loreloop.model.rope import Rope
from loreloop.model.spec import MoeSpec


class Router:
    """Scores experts in fp32 and chooses. `linear` may have rows of zeros behind those of the experts."""

    def __init__(self, layer: int, spec: MoeSpec, linear: BaseLinear, bias_E: Tensor | None) -> None:
        self.layer, self.spec, self.linear, self.bias_E = layer, spec, linear, bias_E
        self.dtype = linear.weight_OI.dtype

    def __call__(self, x_TD: Tensor, lora: Adapters) -> tuple[Tensor, Tensor]:
        """Each token's experts (T, K), and their weights in fp32."""
        spec = self.spec
        # Routers of some families are published and computed in fp32, since a near tie would be decided by bf16's
        # rounding. Columns behind the last expert belong to rows of zeros and are cut off.
        logits_TE = lora.linear(x_TD.to(self.dtype), self.linear, self.layer, "router")[:, : spec.n_experts].float()
        score_TE = logits_TE.softmax(-1) if spec.scoring == "softmax" else logits_TE.sigmoid()
        # The choice itself is discrete and has no gradient; the scores of what was chosen have one.
        ids_TK = self._choose(score_TE.detach())
        if lora.routes is not None:
            ids_TK = lora.routes.settle(self.layer, ids_TK)
        # The bias steers the choice alone: a token's weights come from the scores as the router gave them.
        weight_TK = score_TE.gather(1, ids_TK)
        if spec.normalize:
            # Sigmoid scores may all underflow; the small number keeps such a token's weights zero instead of NaN.
            weight_TK = weight_TK / (weight_TK.sum(-1, keepdim=True) + 1e-20)
        return ids_TK, weight_TK * spec.scaling

    def _choose(self, score_TE: Tensor) -> Tensor:
        spec = self.spec
        if self.bias_E is not None:
            score_TE = score_TE + self.bias_E
        if spec.n_groups > spec.top_groups:
            score_TGE = score_TE.unflatten(1, (spec.n_groups, -1))
            # A group is worth the sum of its two best experts, as DeepSeek-V3 defines it.
            best_TG = score_TGE.topk(2, dim=-1).values.sum(-1)
            left_out_TG = torch.ones_like(best_TG, dtype=torch.bool)
            left_out_TG.scatter_(1, best_TG.topk(spec.top_groups, dim=-1).indices, False)
            # Not zero: the bias may have made the scores of a chosen group's experts negative.
            score_TE = score_TGE.masked_fill(left_out_TG[..., None], float("-inf")).flatten(1)
        return score_TE.topk(spec.top_k, dim=-1).indices


class RoutedFeedForward:
    """Σ weight · expert(x) over the experts of each token, plus the shared expert."""

    def __init__(self, layer: int, router: Router, products: ExpertProducts, shared: GatedFeedForward | None) -> None:
        self.layer, self.router, self.experts, self.shared = layer, router, products.experts, shared
        self.products = products

    def __call__(self, x_TD: Tensor, rope: Rope, attend: Attend, lora: Adapters) -> Tensor:
        ids_TK, weight_TK = self.router(x_TD, lora)
        sum_TD = experts_sum(x_TD, weight_TK, ids_TK, self.products, lora, self.layer)
        return sum_TD if self.shared is None else sum_TD + self.shared(x_TD, rope, attend, lora)

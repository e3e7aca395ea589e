"""The shape of a decoder, as plain numbers: what every family's configuration is mapped to.

A spec that no decoder can have is refused when it is made. Holds no weights and knows no file formats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from loreloop.model.attention_spec import PLAIN_ATTENTION, AttentionSpec, RopeSpec, check_sizes, check_spec

Activation = Literal["silu", "gelu_tanh", "clamped_silu"]
MOST_LAYERS = 10_000
MOST_EXPERTS = 32767  # routes are written down in two bytes


@dataclass(frozen=True)
class MoeSpec:
    """A routed feed-forward: a token goes to `top_k` of `n_experts`, and always to a shared one of width `d_shared`.

    `layers` route, the others are dense. Softmax scores choose by themselves; sigmoid ones after a correction bias has
    been added, and among the experts of the `top_groups` best of `n_groups`.
    """

    n_experts: int
    top_k: int
    d_expert: int
    layers: tuple[int, ...]
    scoring: Literal["softmax", "sigmoid"] = "softmax"
    normalize: bool = True  # a token's weights are made to sum to one
    scaling: float = 1.0
    n_groups: int = 1
    top_groups: int = 1
    d_shared: int = 0
    biases: bool = False  # of the router, and of each expert's products
    by_turns: bool = False  # published rows of gates and ups stand by turns, and not all gates first
    held: tuple[int, int] | None = None  # the first expert that is here, and the one behind the last; None: all are

    def __post_init__(self) -> None:
        sizes = {"n_groups": self.n_groups, "top_groups": self.top_groups}
        check_sizes("routing", n_experts=self.n_experts, top_k=self.top_k, d_expert=self.d_expert, **sizes)
        # What can be chosen when only the best groups take part.
        chosen = self.n_experts // self.n_groups * self.top_groups
        check_spec(
            "routing",
            {
                f"{self.top_k} of {self.n_experts} experts a token": self.top_k <= self.n_experts,
                f"{self.n_experts} experts, at most {MOST_EXPERTS} are known": self.n_experts <= MOST_EXPERTS,
                f"{self.n_experts} experts in {self.n_groups} groups": self.n_experts % self.n_groups == 0,
                f"the best {self.top_groups} of {self.n_groups} groups": self.top_groups <= self.n_groups,
                # A group's score is the sum of its two best.
                "groups of one expert": self.n_groups == self.top_groups or self.n_experts >= 2 * self.n_groups,
                f"{self.top_k} experts a token among {chosen}": self.top_k <= chosen,
                f"a shared expert {self.d_shared!r} wide": isinstance(self.d_shared, int) and self.d_shared >= 0,
                "layers before the first": all(layer >= 0 for layer in self.layers),
                f"the experts {self.held} of {self.n_experts}": 0 <= self.here.start < self.here.stop <= self.n_experts,
            },
        )

    @property
    def here(self) -> range:
        """The experts whose weights are here. The router chooses among all of them wherever they are."""
        return range(*(self.held or (0, self.n_experts)))


@dataclass(frozen=True)
class LatentSpec:
    """Latent attention: keys and values are made from `kv_rank` numbers a token, turned key parts from `d_rope` more.

    Queries come through `q_rank` numbers, or (None) straight from the hidden state.
    """

    q_rank: int | None
    kv_rank: int
    d_nope: int
    d_rope: int
    d_value: int
    softmax_scale: float
    neighbours_turn: bool = True  # published pairs stand side by side; otherwise in the two halves

    def __post_init__(self) -> None:
        query = {} if self.q_rank is None else {"q_rank": self.q_rank}
        widths = {"d_nope": self.d_nope, "d_rope": self.d_rope, "d_value": self.d_value}
        check_sizes("latent attention", kv_rank=self.kv_rank, **widths, **query)


@dataclass(frozen=True)
class ScaleSpec:
    """What numbers are multiplied by on their way: embeddings, what a layer's parts add to the residual stream, and
    logits, which are then, with `logit_cap`, cap · tanh(logit / cap)."""

    embedding: float = 1.0
    residual: float = 1.0
    logit: float = 1.0
    logit_cap: float | None = None

    def __post_init__(self) -> None:
        scales = (self.embedding, self.residual, self.logit, 1.0 if self.logit_cap is None else self.logit_cap)
        check_spec("decoder", {f"its scales are {scales}": all(0 < abs(scale) < math.inf for scale in scales)})


UNSCALED = ScaleSpec()


@dataclass(frozen=True)
class CacheShape:
    """What a token leaves behind in a layer: `n_kinds` (keys and values, or one latent) × `n_heads` × `d_head`."""

    n_kinds: int
    n_heads: int
    d_head: int

    @property
    def size(self) -> int:
        """How many numbers a token leaves behind in one layer."""
        return self.n_kinds * self.n_heads * self.d_head


@dataclass(frozen=True)
class DecoderSpec:
    """Sizes and switches of a decoder. `d_*` are widths, `n_*` counts; `d_head` is that of queries and keys."""

    family: str
    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_ff: int
    rope: RopeSpec
    norm_eps: float
    context_window: int
    tie_embeddings: bool
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: Literal["none", "head", "whole"] = "none"  # of each head by itself, or of all heads side by side
    norms: Literal["before", "after", "both"] = "before"  # where each part of a layer is normed
    norm_offset: float = 0.0  # what is added to the published weights of norms
    activation: Activation = "silu"
    fused_projections: bool = False  # published as one matrix each: q, k, v; gate and up
    d_rotary: int | None = None  # how much of a head is turned, where that is not all of it
    attention: AttentionSpec = PLAIN_ATTENTION
    scales: ScaleSpec = UNSCALED
    eos_token_ids: tuple[int, ...] = ()
    moe: MoeSpec | None = None
    latent: LatentSpec | None = None
    module: str = "model"  # what the decoder is called in the published model; adapters' names begin with it
    held: tuple[int, int] | None = None  # which layers, start…stop, lie here; None: all of them

    def __post_init__(self) -> None:
        names = ("vocab_size", "d_model", "n_layers", "n_heads", "n_kv_heads", "d_head", "d_ff", "context_window")
        check_sizes("decoder", **{name: getattr(self, name) for name in names})
        check_spec(
            "decoder",
            {
                # A configuration is untrusted input. The loop over its layers must end soon even if the number is
                # absurd.
                f"{self.n_layers} layers": self.n_layers < MOST_LAYERS,
                f"{self.n_heads} heads, {self.n_kv_heads} of keys": self.n_heads % self.n_kv_heads == 0,
                f"a head's width {self.d_turned} is odd": self.d_turned % 2 == 0,
                f"{self.d_turned} numbers of a head are turned": 0 < self.d_turned <= self.d_head,
                f"the layers {self.held} of {self.n_layers}": self.held is None
                or 0 <= self.held[0] < self.held[1] <= self.n_layers,
                f"windows of {len(self.attention.windows)} layers": len(self.attention.windows) in (0, self.n_layers),
                f"its norms' epsilon is {self.norm_eps!r}": 0 <= self.norm_eps < 1,
                f"its stop ids are {self.eos_token_ids}": all(isinstance(i, int) for i in self.eos_token_ids),
            },
        )

    @property
    def layers(self) -> range:
        """The layers that lie here, by their numbers in the whole decoder."""
        return range(self.n_layers) if self.held is None else range(*self.held)

    @property
    def has_head(self) -> bool:
        """Whether the head lies here: it stands behind the last layer."""
        return self.layers.stop == self.n_layers

    @property
    def routed_layers(self) -> tuple[int, ...]:
        """Those of the layers here whose feed-forward consists of routed experts."""
        return tuple(layer for layer in self.moe.layers if layer in self.layers) if self.moe else ()

    @property
    def d_q(self) -> int:
        """The width of all queries side by side."""
        return self.n_heads * self.d_head

    @property
    def d_kv(self) -> int:
        """The width of all keys, or of all values, side by side."""
        return self.n_kv_heads * self.d_head

    @property
    def d_turned(self) -> int:
        """How much of a head the rotary embedding turns."""
        if self.latent:
            return self.latent.d_rope
        return self.d_head if self.d_rotary is None else self.d_rotary

    @property
    def d_attended(self) -> int:
        """The width of what attention gives to its output product."""
        return self.n_heads * (self.latent.d_value if self.latent else self.d_head)

    @property
    def cache(self) -> CacheShape:
        """What a token leaves behind in every layer: keys and values of each head, or one latent."""
        if self.latent:
            # A latent serves as key and as value of all heads, so it is stored once.
            return CacheShape(1, 1, self.latent.kv_rank + self.latent.d_rope)
        return CacheShape(2, self.n_kv_heads, self.d_head)

    def routes(self, layer: int) -> bool:
        """Whether this layer's feed-forward consists of routed experts."""
        return self.moe is not None and layer in self.moe.layers

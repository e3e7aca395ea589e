"""The shape of a decoder, as plain numbers: what every family's configuration is mapped to.

Holds no weights and knows no file formats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class RopeSpec:
    """Rotary embedding: `theta` is the base; `llama3` and `yarn` scaling stretch low frequencies by `factor`.

    YaRN keeps what turns `beta_fast` times or more in the original window, stretches what turns `beta_slow` times or
    less, and multiplies queries and keys by `attention_factor`.

    With `sections` (time, rows, columns) a position has three numbers, and frequencies take them in turn.
    """

    theta: float
    scaling: Literal["none", "linear", "llama3", "yarn"] = "none"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context_window: int = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    whole_dimensions: bool = True  # YaRN's borders are rounded to whole dimensions
    sections: tuple[int, ...] = ()


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


@dataclass(frozen=True)
class CacheShape:
    """What a token leaves behind in a layer: `n_kinds` (keys and values, or one latent) × `n_heads` × `d_head`."""

    n_kinds: int
    n_heads: int
    d_head: int

    @property
    def size(self) -> int:
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
    qk_norm: bool = False
    eos_token_ids: tuple[int, ...] = ()
    moe: MoeSpec | None = None
    latent: LatentSpec | None = None
    module: str = "model"  # what the decoder is called in the published model; adapters' names begin with it

    @property
    def d_q(self) -> int:
        return self.n_heads * self.d_head

    @property
    def d_kv(self) -> int:
        return self.n_kv_heads * self.d_head

    @property
    def d_turned(self) -> int:
        """How much of a head the rotary embedding turns."""
        return self.latent.d_rope if self.latent else self.d_head

    @property
    def d_attended(self) -> int:
        """The width of what attention gives to its output product."""
        return self.n_heads * (self.latent.d_value if self.latent else self.d_head)

    @property
    def cache(self) -> CacheShape:
        if self.latent:
            return CacheShape(1, 1, self.latent.kv_rank + self.latent.d_rope)
        return CacheShape(2, self.n_kv_heads, self.d_head)

    def routes(self, layer: int) -> bool:
        return self.moe is not None and layer in self.moe.layers

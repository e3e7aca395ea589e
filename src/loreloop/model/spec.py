"""The shape of a decoder, as plain numbers: what every family's configuration is mapped to.

Holds no weights and knows no file formats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class RopeSpec:
    """Rotary embedding: `theta` is the base; `llama3` scaling stretches low frequencies by `factor`."""

    theta: float
    scaling: Literal["none", "linear", "llama3"] = "none"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context_window: int = 8192


@dataclass(frozen=True)
class DecoderSpec:
    """Sizes and switches of a dense decoder. `d_*` are widths, `n_*` counts."""

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

    @property
    def d_q(self) -> int:
        return self.n_heads * self.d_head

    @property
    def d_kv(self) -> int:
        return self.n_kv_heads * self.d_head

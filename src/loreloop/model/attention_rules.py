"""What of a layer's attention is not plain: a window, a cap on scores, sinks. Handed to whoever computes attention.

Knows neither keys nor masks.

Legend: H query heads.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class AttentionRules:
    """A query sees the last `window` tokens, itself among them (None: all); scores become cap · tanh(score / cap);
    each head's `sinks_H` (fp32) is one more score in the softmax, with a value of zero."""

    window: int | None = None
    cap: float | None = None
    sinks_H: Tensor | None = None

    @property
    def plain_scores(self) -> bool:
        """Whether the softmax is that of the scores alone, as fused kernels compute it."""
        return self.cap is None and self.sinks_H is None

    @property
    def plain(self) -> bool:
        """Whether there is nothing to heed."""
        return self.plain_scores and self.window is None

    def without_window(self) -> AttentionRules:
        """The same for keys of which no query misses any."""
        return self if self.window is None else AttentionRules(None, self.cap, self.sinks_H)


PLAIN = AttentionRules()

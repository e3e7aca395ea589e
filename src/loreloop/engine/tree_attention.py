"""Attention over a packed micro-batch: each segment sees its ancestors' keys and, causally, its own.

Gradients flow into the shared ancestors by themselves. Plain: one call a segment.

Legend: T rows, H query heads, G key/value heads, E head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from loreloop.engine.attention import Attention
from loreloop.engine.packing import Segment


class TreeAttention:
    """An `Attend` for the decoder, for one micro-batch."""

    def __init__(self, attention: Attention, segments: tuple[Segment, ...]) -> None:
        self.attention = attention
        self.segments = segments
        self.runs = [_key_runs(segments, index) for index in range(len(segments))]

    def __call__(self, layer: int, q_THE: Tensor, k_TGE: Tensor, v_TGE: Tensor) -> Tensor:
        outputs = [
            self.attention.causal(q_THE[segment.start : segment.stop], _gather(k_TGE, runs), _gather(v_TGE, runs))
            for segment, runs in zip(self.segments, self.runs, strict=True)
        ]
        return torch.cat(outputs) if len(outputs) > 1 else outputs[0]


def _key_runs(segments: tuple[Segment, ...], index: int) -> list[slice]:
    """Row ranges from the root down to segment `index`, neighbours joined."""
    runs: list[slice] = []
    while index >= 0:
        segment = segments[index]
        if runs and runs[0].start == segment.stop:
            runs[0] = slice(segment.start, runs[0].stop)
        else:
            runs.insert(0, slice(segment.start, segment.stop))
        index = segment.parent
    return runs


def _gather(x_TGE: Tensor, runs: list[slice]) -> Tensor:
    return x_TGE[runs[0]] if len(runs) == 1 else torch.cat([x_TGE[run] for run in runs])

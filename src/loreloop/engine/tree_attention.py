"""Attention over a packed micro-batch: each segment sees its ancestors' keys and, causally, its own.

Leaves of one parent that stand side by side (the answers to one prompt) share a call, with a mask between them; their
ancestors' keys are then read once for all. Gradients flow into the shared ancestors by themselves.

Legend: T rows, Q queries of a call, K keys of a call, H query heads, G key/value heads, E head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loreloop.engine.attention import Attention
from loreloop.engine.packing import Segment

FAMILY_ROWS = 256  # more rows in one call would waste more on masked pairs than it saves on calls


@dataclass(frozen=True)
class _Call:
    """Segments that are queried together (`members`), and their ancestors from the root down."""

    members: tuple[int, ...]
    ancestors: tuple[int, ...]
    mask_QK: Tensor | None


class TreeAttention:
    """An `Attend` for the decoder, for one micro-batch."""

    def __init__(self, attention: Attention, segments: Sequence[Segment], device: torch.device) -> None:
        self.attention = attention
        self.sizes = [segment.stop - segment.start for segment in segments]
        families = _families(segments) if attention.takes_masks else [(i,) for i in range(len(segments))]
        self.calls = [self._call(segments, members, device) for members in families]

    def __call__(self, layer: int, q_THE: Tensor, k_TGE: Tensor, v_TGE: Tensor) -> Tensor:
        # One split over all rows: its backward pass is one concatenation, where slices would each fill all rows.
        q_pieces, k_pieces, v_pieces = (x.split(self.sizes) for x in (q_THE, k_TGE, v_TGE))
        outputs = []
        for call in self.calls:
            q = _joined(q_pieces, call.members)
            k, v = (_joined(pieces, (*call.ancestors, *call.members)) for pieces in (k_pieces, v_pieces))
            outputs.append(self.attention.causal(q, k, v, call.mask_QK))
        return _joined(outputs, range(len(outputs)))

    def _call(self, segments: Sequence[Segment], members: tuple[int, ...], device: torch.device) -> _Call:
        ancestors: list[int] = []
        above = segments[members[0]].parent
        while above >= 0:
            ancestors.insert(0, above)
            above = segments[above].parent
        mask = self._family_mask(ancestors, members).to(device) if len(members) > 1 else None
        return _Call(members, tuple(ancestors), mask)

    def _family_mask(self, ancestors: Sequence[int], members: Sequence[int]) -> Tensor:
        """(Q, K) bool: all ancestors, and one's own past."""
        sizes = [self.sizes[member] for member in members]
        own = torch.block_diag(*(torch.ones(size, size).tril() for size in sizes)).bool()
        shared = torch.ones(len(own), sum(self.sizes[ancestor] for ancestor in ancestors), dtype=torch.bool)
        return torch.cat((shared, own), dim=1)


def _families(segments: Sequence[Segment]) -> list[tuple[int, ...]]:
    """Neighbouring leaves of one parent together, every other segment alone; in the order of rows."""
    parents = {segment.parent for segment in segments}
    families: list[list[int]] = []
    n_rows = 0
    for index, segment in enumerate(segments):
        size = segment.stop - segment.start
        before = families[-1][-1] if families else None
        joins = (
            before is not None
            and segment.parent >= 0
            and segments[before].parent == segment.parent
            and not {before, index} & parents
            and n_rows + size <= FAMILY_ROWS
        )
        if joins:
            families[-1].append(index)
            n_rows += size
        else:
            families.append([index])
            n_rows = size
    return [tuple(family) for family in families]


def _joined(pieces: Sequence[Tensor], indices: Sequence[int]) -> Tensor:
    return pieces[indices[0]] if len(indices) == 1 else torch.cat([pieces[index] for index in indices])

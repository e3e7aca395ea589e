"""Attention over a packed micro-batch: each segment sees its ancestors' keys and, causally, its own.

Leaves of one parent that stand side by side (the answers to one prompt) share a call, padded to the longest of them.
Gradients flow into the shared ancestors by themselves.

Legend: T rows, B segments of a call, Q queries, K keys, H query heads, G key/value heads, E head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from loreloop.engine.attention import KEY_BLOCK, Attention, Reach
from loreloop.engine.packing import Segment

FAMILY_KEYS = 1 << 14  # keys of one call: each member has its own copy of the shared ones


@dataclass(frozen=True)
class _Call:
    """Segments that are queried together (`members`), and their ancestors from the root down."""

    members: tuple[int, ...]
    ancestors: tuple[int, ...]
    reach: Reach | None


class TreeAttention:
    """An `Attend` for the decoder, for one micro-batch."""

    def __init__(self, attention: Attention, segments: Sequence[Segment], device: torch.device) -> None:
        self.attention = attention
        self.sizes = [segment.stop - segment.start for segment in segments]
        self.calls = [self._call(segments, members, device) for members in _families(segments)]

    def __call__(self, layer: int, q_THE: Tensor, k_TGE: Tensor, v_TGE: Tensor) -> Tensor:
        # One split over all rows: its backward pass is one concatenation, where slices would each fill all rows.
        q_pieces, k_pieces, v_pieces = (x.split(self.sizes) for x in (q_THE, k_TGE, v_TGE))
        outputs: list[Tensor] = []
        for call in self.calls:
            if call.reach is None:
                ids = (*call.ancestors, *call.members)
                k, v = _joined(k_pieces, ids), _joined(v_pieces, ids)
                outputs.append(self.attention.causal(q_pieces[call.members[0]], k, v))
            else:
                q_BQHE = pad_sequence([q_pieces[member] for member in call.members], batch_first=True)
                k_BKGE, v_BKGE = (_keys(pieces, call, call.reach.n_keys) for pieces in (k_pieces, v_pieces))
                o_BQHE = self.attention.batched(q_BQHE, k_BKGE, v_BKGE, call.reach)
                outputs += [o_QHE[: self.sizes[m]] for o_QHE, m in zip(o_BQHE.unbind(), call.members, strict=True)]
        return torch.cat(outputs) if len(outputs) > 1 else outputs[0]

    def _call(self, segments: Sequence[Segment], members: tuple[int, ...], device: torch.device) -> _Call:
        ancestors = _ancestors(segments, members[0])
        if len(members) == 1:
            return _Call(members, ancestors, None)
        n_shared = sum(self.sizes[ancestor] for ancestor in ancestors)
        n_queries = max(self.sizes[member] for member in members)
        n_keys = n_shared + n_queries
        first_B = torch.full((len(members),), n_shared, device=device)
        return _Call(members, ancestors, Reach(first_B, n_queries, n_keys + -n_keys % KEY_BLOCK))


def _keys(pieces: Sequence[Tensor], call: _Call, n_keys: int) -> Tensor:
    """(B, K, G, E): the ancestors' keys once for each member, its own behind them, zeros up to K."""
    own = pad_sequence([pieces[member] for member in call.members], batch_first=True)
    shared = _joined(pieces, call.ancestors)
    keys = torch.cat((shared.expand(len(call.members), *shared.shape), own), dim=1)
    return F.pad(keys, (0, 0, 0, 0, 0, n_keys - keys.shape[1]))


def _ancestors(segments: Sequence[Segment], index: int) -> tuple[int, ...]:
    """From the root down."""
    above = segments[index].parent
    return (*_ancestors(segments, above), above) if above >= 0 else ()


def _families(segments: Sequence[Segment]) -> list[tuple[int, ...]]:
    """Neighbouring leaves of one parent together, every other segment alone; in the order of rows."""
    parents = {segment.parent for segment in segments}
    depths: list[int] = []  # keys up to a segment's end
    families: list[list[int]] = []
    for index, segment in enumerate(segments):
        depths.append(segment.stop - segment.start + (depths[segment.parent] if segment.parent >= 0 else 0))
        before = families[-1][-1] if families else None
        if (
            before is not None
            and segment.parent >= 0
            and segments[before].parent == segment.parent
            and not {before, index} & parents
            and (len(families[-1]) + 1) * max(depths[member] for member in (*families[-1], index)) <= FAMILY_KEYS
        ):
            families[-1].append(index)
        else:
            families.append([index])
    return [tuple(family) for family in families]


def _joined(pieces: Sequence[Tensor], indices: Sequence[int]) -> Tensor:
    return pieces[indices[0]] if len(indices) == 1 else torch.cat([pieces[index] for index in indices])

"""Attention over a packed micro-batch: each segment sees its ancestors' keys and, causally, its own.

Segments without ancestors read their keys where they lie. The others gather the keys on their path to the root, and
those of like sizes share a call. The backward pass gathers nothing (`tree_backward`).

Legend: T rows, N rows in the order of the calls, B segments of a call, Q queries, K keys, H query heads, G key/value
heads, E head width, L width of a latent.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from loreloop.engine.attention import KEY_BLOCK, Attention, Reach
from loreloop.engine.contract import Pause
from loreloop.engine.training.packing import Ids, Segment
from loreloop.engine.training.tree_backward import Attended, blocks_of, tree_gradients
from loreloop.model.attention_rules import PLAIN, AttentionRules
from loreloop.model.decoder import LatentHeads
from loreloop.model.lora import Adapters
from loreloop.model.rope import Rope

LONG_PIECE = 1024
CALL_KEYS = 1 << 14  # gathered keys of one call, before padding


@dataclass(frozen=True)
class _Call:
    """Segments of like sizes: the rows of their queries and of their keys, padded with rows that are masked away."""

    query_rows_BQ: Tensor
    key_rows_BK: Tensor
    reach: Reach

    def __call__(
        self, attention: Attention, q_THE: Tensor, k_TGE: Tensor, v_TGE: Tensor, rules: AttentionRules
    ) -> Tensor:
        q_BQHE, k_BKGE, v_BKGE = (
            _gather(x, rows)
            for x, rows in ((q_THE, self.query_rows_BQ), (k_TGE, self.key_rows_BK), (v_TGE, self.key_rows_BK))
        )
        return attention.batched(q_BQHE, k_BKGE, v_BKGE, self.reach, rules).flatten(0, 1)


class TreeAttention:
    """An `Attend` for the decoder, for one micro-batch; `borders` are the rows at which another model's begin."""

    def __init__(
        self,
        attention: Attention,
        segments: Sequence[Segment],
        device: torch.device,
        borders: Iterable[int] = (),
        pause: Pause = lambda: None,
    ) -> None:
        self.attention, self.pause = attention, pause
        # Everything here follows from the segments and is made once, for all layers of the micro-batch.
        self.sizes = [segment.stop - segment.start for segment in segments]
        self.roots = [index for index, segment in enumerate(segments) if segment.parent < 0]
        paths = _paths(segments)
        groups = _like_sizes([i for i, segment in enumerate(segments) if segment.parent >= 0], self.sizes, paths)
        self.calls = [_call([paths[i] for i in group], [self.sizes[i] for i in group], device) for group in groups]
        self.order_T = _order(segments, self.roots, groups, self.calls, device)
        # Made when a layer asks for them: one kind for each width of a window.
        self.blocks = functools.cache(functools.partial(blocks_of, segments, tuple(borders)))

    def __call__(
        self, layer: int, q_THE: Tensor, k_TGE: Tensor, v_TGE: Tensor, rope: Rope, rules: AttentionRules = PLAIN
    ) -> Tensor:
        return self._attend(rope.rotate(q_THE), rope.rotate(k_TGE), v_TGE, rules)

    def latent(self, layer: int, q_THE: Tensor, latent_TL: Tensor, heads: LatentHeads, lora: Adapters) -> Tensor:
        """The same over latents, expanded to keys and values for the whole micro-batch. Gives (T, H, V)."""
        return self._attend(heads.scaled(q_THE), *heads.expand(latent_TL, lora, layer), PLAIN)

    def _attend(self, q_THE: Tensor, k_TGE: Tensor, v_TGE: Tensor, rules: AttentionRules) -> Tensor:
        # Passes without gradients need no context, and autograd's own wrapper is not free.
        if torch.is_grad_enabled():
            return _Attend.apply(q_THE, k_TGE, v_TGE, self, rules)
        return self.outputs(q_THE, k_TGE, v_TGE, rules)

    def outputs(self, q_THE: Tensor, k_TGE: Tensor, v_TGE: Tensor, rules: AttentionRules = PLAIN) -> Tensor:
        """o = softmax(q·k/√E)·v of every row over its path, (T, H, E), without autograd. Queries and keys have been
        turned."""
        q_pieces, k_pieces, v_pieces = (x.split(self.sizes) for x in (q_THE, k_TGE, v_TGE))
        outputs = [o for i in self.roots for o in self._root(q_pieces[i], k_pieces[i], v_pieces[i], rules)]
        outputs += [call(self.attention, q_THE, k_TGE, v_TGE, rules) for call in self.calls]
        # Roots come first and calls behind them; `order_T` then puts every row's output back in its place.
        o_NHE = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
        return o_NHE if self.order_T is None else _gather(o_NHE, self.order_T)

    def _root(self, q_QHE: Tensor, k_QGE: Tensor, v_QGE: Tensor, rules: AttentionRules) -> Iterator[Tensor]:
        """In pieces where it is long, so that others need not wait for all of it."""
        n_rows = q_QHE.shape[0]
        # A piece sees all keys before it as well, so later pieces of a long root take longer. Sampling waits for one
        # piece at most.
        piece = LONG_PIECE if n_rows > 2 * LONG_PIECE else n_rows
        for start in range(0, n_rows, piece):
            stop = min(start + piece, n_rows)
            yield self.attention.causal(q_QHE[start:stop], k_QGE[:stop], v_QGE[:stop], rules)
            self.pause()


def _paths(segments: Sequence[Segment]) -> list[Ids]:
    """The rows from the root to each segment's last token."""
    paths: list[Ids] = []
    for segment in segments:
        own_rows = np.arange(segment.start, segment.stop)
        # Parents come first, so a parent's path is there already.
        paths.append(np.concatenate((paths[segment.parent], own_rows)) if segment.parent >= 0 else own_rows)
    return paths


def _like_sizes(indices: Sequence[int], sizes: Sequence[int], paths: Sequence[Ids]) -> list[list[int]]:
    """Groups in which padding to the largest costs little."""
    groups: list[list[int]] = []
    # Sorted, so that those of like sizes are neighbours and one look at the last group is enough.
    for index in sorted(indices, key=lambda i: (_query_class(sizes[i]), len(paths[i]))):
        first = groups[-1][0] if groups else None
        if (
            first is not None
            and _query_class(sizes[index]) == _query_class(sizes[first])
            # A quarter more keys is padding that costs less than another call; the block of keys lets very short paths
            # join.
            and len(paths[index]) <= 1.25 * len(paths[first]) + KEY_BLOCK
            and (len(groups[-1]) + 1) * len(paths[index]) <= CALL_KEYS
        ):
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def _query_class(n_queries: int) -> int:
    # Up to a block of keys queries go by powers of two, above it by blocks; the classes of both kinds do not overlap.
    return max(2, (n_queries - 1).bit_length()) if n_queries <= KEY_BLOCK else -(-n_queries // KEY_BLOCK) + KEY_BLOCK


def _call(paths: Sequence[Ids], sizes: Sequence[int], device: torch.device) -> _Call:
    n_queries, n_keys = max(sizes), max(map(len, paths))
    # Attention promises equal results for equal keys only when they are padded to whole blocks.
    n_keys += -n_keys % KEY_BLOCK
    query_rows, key_rows = np.empty((len(paths), n_queries), np.int64), np.empty((len(paths), n_keys), np.int64)
    for b, (path, size) in enumerate(zip(paths, sizes, strict=True)):
        # Padding repeats rows that exist. Numbers from nowhere could be NaN, and NaN survives a weight of zero.
        query_rows[b, :size], query_rows[b, size:] = path[-size:], path[-1]
        key_rows[b, : len(path)], key_rows[b, len(path) :] = path, path[0]
    # Where a segment's own tokens begin on its path, which is their position.
    first = torch.tensor([len(path) - size for path, size in zip(paths, sizes, strict=True)], device=device)
    reach = Reach(first, n_queries, n_keys)
    return _Call(torch.from_numpy(query_rows).to(device), torch.from_numpy(key_rows).to(device), reach)


def _order(
    segments: Sequence[Segment], roots: list[int], groups: list[list[int]], calls: list[_Call], device: torch.device
) -> Tensor | None:
    """(T,): where each row's output lies among those of the roots and the calls, one behind the other."""
    if not calls:
        return None
    # Calls give padded segments, so each segment counts on by the call's width and not by its own size.
    order_T = np.empty(max(segment.stop for segment in segments), np.int64)
    position = 0
    for index in roots:
        size = segments[index].stop - segments[index].start
        order_T[segments[index].start : segments[index].stop] = np.arange(position, position + size)
        position += size
    for group, call in zip(groups, calls, strict=True):
        for index in group:
            size = segments[index].stop - segments[index].start
            order_T[segments[index].start : segments[index].stop] = np.arange(position, position + size)
            position += call.reach.n_queries
    return torch.from_numpy(order_T).to(device)


def _gather(x_NHE: Tensor, rows: Tensor) -> Tensor:
    return x_NHE.index_select(0, rows.flatten()).unflatten(0, rows.shape)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q_THE: Tensor, k_TGE: Tensor, v_TGE: Tensor, tree: TreeAttention, rules: AttentionRules
    ) -> Tensor:
        o_THE = tree.outputs(q_THE, k_TGE, v_TGE, rules)
        ctx.save_for_backward(q_THE, k_TGE, v_TGE, o_THE)
        ctx.tree, ctx.rules = tree, rules
        return o_THE

    @staticmethod
    def backward(ctx: Any, do_THE: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        # The output is saved rather than the softmax: its dot product with the gradient is all that the softmax's
        # gradient needs of it.
        blocks = ctx.tree.blocks(ctx.rules.window)
        gradients = tree_gradients(Attended(*ctx.saved_tensors), do_THE, blocks, ctx.tree.pause, ctx.rules)
        return *gradients, None, None

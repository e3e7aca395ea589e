"""Gradients of attention over a packed tree, in plain products.

Rows stand in the order of a walk down the tree, so that the rows that see a segment's keys follow it without a gap:
its own, each up to itself, and those of its descendants. Keys are therefore read where they lie; nothing is gathered.
Works through blocks of query rows, whose scores fit into a processor's cache. Knows rows and windows, not tokens.

Legend: T rows, B rows of a block, H query heads, G key/value heads, P query heads a group, Q rows × P, K keys of a
part, E head width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from loreloop.engine.contract import Pause
from loreloop.engine.training.packing import Segment
from loreloop.kernels import cpu
from loreloop.kernels.cpu import Window
from loreloop.model.attention_rules import PLAIN, AttentionRules

BLOCK = 128


@dataclass(frozen=True)
class Part:
    """Query rows and the key rows they see, each up to itself and from that of `from_T` on (None: from the first)."""

    rows: range
    keys: range
    from_T: Tensor | None


@dataclass(frozen=True)
class Blocks:
    """Which keys the rows of each block see."""

    parts: tuple[tuple[range, tuple[Part, ...]], ...]


def blocks_of(segments: Sequence[Segment], borders: Iterable[int], window: int | None = None) -> Blocks:
    """Segments lie end to end, parents first, descendants behind one another. With a `window` a row sees no more tokens
    than that, itself among them.

    No block reaches over one of the `borders`, the rows at which another model's begin: a weight of zero does not keep
    out a gradient that has overflowed.
    """
    n_rows = segments[-1].stop
    position_T = _positions(segments)
    first_T = torch.empty(n_rows, dtype=torch.int64)
    # Walked from the last segment to the first, so that a segment's end is final before its parent looks at it.
    ends = [segment.stop for segment in segments]  # of each one's last descendant
    for index in reversed(range(len(segments))):
        segment = segments[index]
        first_T[segment.start : segment.stop] = segment.start
        if segment.parent >= 0:
            ends[segment.parent] = max(ends[segment.parent], ends[index])
    # Descendants follow their ancestor without a gap, so those who read its keys are one range of rows.
    seen_below = [
        (range(segment.stop, end), range(segment.start, segment.stop))
        for segment, end in zip(segments, ends, strict=True)
        if end > segment.stop
    ]
    blocks = []
    edges = sorted({0, n_rows, *borders})
    for start, stop in ((a, min(a + BLOCK, end)) for begin, end in pairwise(edges) for a in range(begin, end, BLOCK)):
        rows = range(start, stop)
        # Rows of a block may belong to several segments. The keys reach from the first one's beginning; `first_T` then
        # hides from each row what is not its own.
        parts = [_own(rows, first_T, window)]
        for readers, keys in seen_below:
            within = range(max(rows.start, readers.start), min(rows.stop, readers.stop))
            if within and (part := _below(within, keys, position_T, window)):
                parts.append(part)
        blocks.append((rows, tuple(parts)))
    return Blocks(tuple(blocks))


def _own(rows: range, first_T: Tensor, window: int | None) -> Part:
    """The keys of the rows' own segments."""
    if window is not None:
        # Within a segment rows are numbered as positions are.
        first_T = torch.maximum(first_T, torch.arange(len(first_T)) - window + 1)
    return Part(rows, range(int(first_T[rows.start]), rows.stop), first_T)


def _below(rows: range, keys: range, position_T: Tensor, window: int | None) -> Part | None:
    """The keys of an ancestor's segment; None where all lie before the rows' windows."""
    if window is None:
        return Part(rows, keys, None)
    # The row of the ancestor's segment at which each row's window begins, counted on over both of its ends.
    from_T = position_T - window + 1 - int(position_T[keys.start]) + keys.start
    # Held within the segment, since kernels clear what lies before it.
    from_T = from_T.clamp(keys.start, keys.stop)
    oldest = int(from_T[_slice(rows)].min())
    return Part(rows, range(oldest, keys.stop), from_T) if oldest < keys.stop else None


def _positions(segments: Sequence[Segment]) -> Tensor:
    """How many tokens stand before each row's in its sequence, (T,)."""
    position_T = torch.empty(segments[-1].stop, dtype=torch.int64)
    for segment in segments:
        # A parent's last row stands before a segment's first.
        first = int(position_T[segments[segment.parent].stop - 1]) + 1 if segment.parent >= 0 else 0
        position_T[_slice(range(segment.start, segment.stop))] = torch.arange(segment.stop - segment.start) + first
    return position_T


class Attended(NamedTuple):
    """What attention read and gave."""

    q_THE: Tensor
    k_TGE: Tensor
    v_TGE: Tensor
    o_THE: Tensor


def tree_gradients(
    forward: Attended,
    do_THE: Tensor,
    blocks: Blocks,
    pause: Pause = lambda: None,
    rules: AttentionRules = PLAIN,
) -> tuple[Tensor, Tensor, Tensor]:
    """∂/∂q, ∂/∂k and ∂/∂v from that of o = softmax(q·k/√E)·v; sums over several readers of a key are fp32.

    With weights p and scores s: dv = pᵀ·do, dp = do·vᵀ, ds = p ∘ (dp − Σ do∘o), dq = ds·k, dk = dsᵀ·q. Sinks are scores
    that everything is divided by as well. A window is in the blocks already.
    """
    q_THE, k_TGE, v_TGE, o_THE = forward
    n_groups, d_head = k_TGE.shape[1:]
    n_repeats = q_THE.shape[1] // n_groups
    # A group's query heads stand as rows over their one key head.
    q_GQE, do_GQE = (x.unflatten(1, (n_groups, -1)).transpose(0, 1).flatten(1, 2) for x in (q_THE, do_THE))
    along_THQ = (do_THE.float() * o_THE.float()).sum(-1)
    along_GQ = along_THQ.unflatten(1, (n_groups, -1)).transpose(0, 1).flatten(1, 2).contiguous()
    k_GTE, v_GTE = (x.transpose(0, 1).contiguous() for x in (k_TGE, v_TGE))
    dq_GQE = torch.empty_like(q_GQE)
    dk_GTE, dv_GTE = (torch.zeros(x_GTE.shape, device=x_GTE.device) for x_GTE in (k_GTE, v_GTE))
    scale = 1 / math.sqrt(d_head)
    for rows, parts in blocks.parts:
        # The normalizer over all of a row's parts must be known before any weight: a softmax cannot be taken part by
        # part.
        log_sum_GQ = _first_sums(rules, n_groups, len(rows) * n_repeats, q_GQE)
        scores, windows = [], []
        for part in parts:
            score_GQK = q_GQE[:, _query_rows(part.rows, n_repeats)] @ k_GTE[:, _slice(part.keys)].transpose(1, 2)
            window = Window(part.rows.start, part.keys.start, n_repeats, part.from_T)
            slope_GQK = None
            if rules.cap is not None:
                score_GQK, slope_GQK = cap_scores(score_GQK, scale, rules.cap)
            add_log_sums(score_GQK, window, scale, log_sum_GQ[:, _query_rows(part.rows, n_repeats, rows.start)])
            # Kept for the second round: a block's scores fit into the cache, and making them again would be a product
            # more.
            scores.append((score_GQK, slope_GQK))
            windows.append(window)
        # A query's gradient sums over its parts. They add up here, and the block is written once, in the compute dtype.
        dq_block_GQE = torch.zeros((n_groups, len(rows) * n_repeats, d_head), device=q_GQE.device)
        # From here on a part's scores become weights, and the weights' gradients become the scores'.
        for part, (score_GQK, slope_GQK), window in zip(parts, scores, windows, strict=True):
            queries, keys = _query_rows(part.rows, n_repeats), _slice(part.keys)
            within = _query_rows(part.rows, n_repeats, rows.start)
            dweight_GQK = do_GQE[:, queries] @ v_GTE[:, keys].transpose(1, 2)
            score_gradients(score_GQK, dweight_GQK, window, scale, log_sum_GQ[:, within], along_GQ[:, queries])
            if slope_GQK is not None:
                dweight_GQK *= slope_GQK
            # A key has readers in many blocks, which is why these two sums are fp32 and not in the compute dtype.
            dv_GTE[:, keys] += score_GQK.to(do_GQE.dtype).transpose(1, 2) @ do_GQE[:, queries]
            dk_GTE[:, keys] += dweight_GQK.transpose(1, 2) @ q_GQE[:, queries]
            dq_block_GQE[:, within] += dweight_GQK @ k_GTE[:, keys]
        dq_GQE[:, _query_rows(rows, n_repeats)] = dq_block_GQE
        # Between two blocks nothing is half done but sums, so a sampling step may run here.
        pause()
    dq_THE = dq_GQE.unflatten(1, (-1, n_repeats)).transpose(0, 1).flatten(1, 2)
    return dq_THE, dk_GTE.transpose(0, 1).to(k_TGE.dtype), dv_GTE.transpose(0, 1).to(v_TGE.dtype)


def _first_sums(rules: AttentionRules, n_groups: int, n_queries: int, like: Tensor) -> Tensor:
    """What the sums of weights begin with, as logarithms, (G, Q): nothing, or each head's sink."""
    if rules.sinks_H is None:
        return torch.full((n_groups, n_queries), -math.inf, device=like.device)
    sink_GP = rules.sinks_H.view(n_groups, -1)
    return sink_GP.repeat(1, n_queries // sink_GP.shape[1])


def cap_scores(score_GQK: Tensor, scale: float, cap: float) -> tuple[Tensor, Tensor]:
    """Products whose scaled ones are capped, and the slope of the cap, both fp32: the forward pass does not round what
    it has capped either."""
    bent_GQK = torch.tanh(score_GQK.float() * (scale / cap))
    return bent_GQK * (cap / scale), 1 - bent_GQK.square()


def _query_rows(rows: range, n_repeats: int, origin: int = 0) -> slice:
    return slice((rows.start - origin) * n_repeats, (rows.stop - origin) * n_repeats)


def _slice(rows: range) -> slice:
    return slice(rows.start, rows.stop)


def add_log_sums(score_GQK: Tensor, window: Window, scale: float, log_sum_GQ: Tensor) -> None:
    """As in `kernels.cpu`, for any device and dtype."""
    if cpu.supports(score_GQK, score_GQK.dtype):
        return cpu.add_log_sums(score_GQK, window, scale, log_sum_GQ)
    # The scale is applied after the product, in fp32, as the kernel does.
    scaled_GQK = (score_GQK.float() * scale).masked_fill(_unseen(score_GQK, window), -math.inf)
    # In place, since the caller's tensor is a slice of the whole block's sums.
    log_sum_GQ.copy_(torch.logaddexp(log_sum_GQ, scaled_GQK.logsumexp(-1)))


def score_gradients(
    score_GQK: Tensor, dweight_GQK: Tensor, window: Window, scale: float, log_sum_GQ: Tensor, along_GQ: Tensor
) -> None:
    """As in `kernels.cpu`, for any device and dtype."""
    if cpu.supports(score_GQK, score_GQK.dtype):
        return cpu.score_gradients(score_GQK, dweight_GQK, window, scale, log_sum_GQ, along_GQ)
    # With the forward pass's scores and the same normalizer this is its softmax, without a maximum to look for again.
    weight_GQK = (score_GQK.float() * scale - log_sum_GQ[..., None]).exp_()
    weight_GQK.masked_fill_(_unseen(score_GQK, window), 0)
    dweight_GQK.copy_(weight_GQK * (dweight_GQK.float() - along_GQ[..., None]) * scale)
    score_GQK.copy_(weight_GQK)


def _unseen(score_GQK: Tensor, window: Window) -> Tensor:
    n_rows, n_keys = score_GQK.shape[1:]
    device = score_GQK.device
    query_Q1 = window.first_query + torch.arange(n_rows, device=device)[:, None] // window.n_repeats
    key_K = window.first_key + torch.arange(n_keys, device=device)
    # Keys and queries are numbered by rows, which within a path stand in the order of positions.
    unseen_QK = key_K > query_Q1
    return unseen_QK if window.from_T is None else unseen_QK | (key_K < window.from_T.to(device)[query_Q1])

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

BLOCK = 128


@dataclass(frozen=True)
class Part:
    """Query rows and the key rows they see: all, or, in an `own` part, those of their segment up to themselves."""

    rows: range
    keys: range
    own: bool


@dataclass(frozen=True)
class Blocks:
    """Which keys the rows of each block see; `first_T` is where each row's segment begins."""

    parts: tuple[tuple[range, tuple[Part, ...]], ...]
    first_T: Tensor


def blocks_of(segments: Sequence[Segment], borders: Iterable[int]) -> Blocks:
    """Segments lie end to end, parents first, descendants behind one another.

    No block reaches over one of the `borders`, the rows at which another model's begin: a weight of zero does not keep
    out a gradient that has overflowed.
    """
    n_rows = segments[-1].stop
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
        parts = [Part(rows, range(int(first_T[start]), rows.stop), own=True)]
        for readers, keys in seen_below:
            within = range(max(rows.start, readers.start), min(rows.stop, readers.stop))
            if within:
                parts.append(Part(within, keys, own=False))
        blocks.append((rows, tuple(parts)))
    return Blocks(tuple(blocks), first_T)


class Attended(NamedTuple):
    """What attention read and gave."""

    q_THE: Tensor
    k_TGE: Tensor
    v_TGE: Tensor
    o_THE: Tensor


def tree_gradients(
    forward: Attended, do_THE: Tensor, blocks: Blocks, pause: Pause = lambda: None
) -> tuple[Tensor, Tensor, Tensor]:
    """∂/∂q, ∂/∂k and ∂/∂v from that of o = softmax(q·k/√E)·v; sums over several readers of a key are fp32.

    With weights p and scores s: dv = pᵀ·do, dp = do·vᵀ, ds = p ∘ (dp − Σ do∘o), dq = ds·k, dk = dsᵀ·q.
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
        log_sum_GQ = torch.full((n_groups, len(rows) * n_repeats), -math.inf, device=q_GQE.device)
        scores, windows = [], []
        for part in parts:
            score_GQK = q_GQE[:, _query_rows(part.rows, n_repeats)] @ k_GTE[:, _slice(part.keys)].transpose(1, 2)
            first_T = blocks.first_T if part.own else None
            window = Window(part.rows.start, part.keys.start, n_repeats, first_T)
            add_log_sums(score_GQK, window, scale, log_sum_GQ[:, _query_rows(part.rows, n_repeats, rows.start)])
            # Kept for the second round: a block's scores fit into the cache, and making them again would be a product
            # more.
            scores.append(score_GQK)
            windows.append(window)
        # A query's gradient sums over its parts. They add up here, and the block is written once, in the compute dtype.
        dq_block_GQE = torch.zeros((n_groups, len(rows) * n_repeats, d_head), device=q_GQE.device)
        # From here on a part's scores become weights, and the weights' gradients become the scores'.
        for part, score_GQK, window in zip(parts, scores, windows, strict=True):
            queries, keys = _query_rows(part.rows, n_repeats), _slice(part.keys)
            within = _query_rows(part.rows, n_repeats, rows.start)
            dweight_GQK = do_GQE[:, queries] @ v_GTE[:, keys].transpose(1, 2)
            score_gradients(score_GQK, dweight_GQK, window, scale, log_sum_GQ[:, within], along_GQ[:, queries])
            # A key has readers in many blocks, which is why these two sums are fp32 and not in the compute dtype.
            dv_GTE[:, keys] += score_GQK.transpose(1, 2) @ do_GQE[:, queries]
            dk_GTE[:, keys] += dweight_GQK.transpose(1, 2) @ q_GQE[:, queries]
            dq_block_GQE[:, within] += dweight_GQK @ k_GTE[:, keys]
        dq_GQE[:, _query_rows(rows, n_repeats)] = dq_block_GQE
        # Between two blocks nothing is half done but sums, so a sampling step may run here.
        pause()
    dq_THE = dq_GQE.unflatten(1, (-1, n_repeats)).transpose(0, 1).flatten(1, 2)
    return dq_THE, dk_GTE.transpose(0, 1).to(k_TGE.dtype), dv_GTE.transpose(0, 1).to(v_TGE.dtype)


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

"""From hidden states to log-probabilities, a chunk of rows at a time, so that rows × vocabulary never stands in memory.

For targets known beforehand the first pass also keeps ∂logp/∂hidden, which makes the backward pass one scaling. Where
the unembedding itself is trained, or a position has several targets, logits are computed again in the backward pass.

Legend: N rows to score, D model width, V vocabulary, K targets a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from loreloop.engine.contract import Pause
from loreloop.engine.softmax import normalizer_of, piece_rows, to_probabilities
from loreloop.model.decoder import Decoder
from loreloop.model.lora import UNEMBED, LoraBatch, LoraGroup

CHUNK_ROWS = 128
FIXED_ROWS = 32


@dataclass(frozen=True)
class Scores:
    """`logp_NK` fp32; `grad_ND` is ∂logp/∂hidden where it was asked for (K is then 1)."""

    logp_NK: Tensor
    grad_ND: Tensor | None = None


class Head:
    """Scores hidden states of one decoder. With `fixed_rows` every chunk has one shape, so rows do not matter to
    each other."""

    def __init__(self, decoder: Decoder, fixed_rows: bool) -> None:
        self.decoder, self.fixed_rows = decoder, fixed_rows
        self.chunk_rows = FIXED_ROWS if fixed_rows else CHUNK_ROWS

    def chunks(self, h_ND: Tensor, lora: LoraBatch) -> Iterator[tuple[slice, Tensor]]:
        """(rows, their logits) a few at a time; the logits end with padding rows if rows are fixed."""
        for rows, logits_NV in self._products(h_ND, lora):
            for piece in self._pieces(rows):
                # Rows are told without the padding, logits with it: whoever reads them stops at the rows.
                yield slice(rows.start + piece.start, min(rows.start + piece.stop, rows.stop)), logits_NV[piece]

    @torch.no_grad()
    def score(
        self,
        h_ND: Tensor,
        targets_NK: Tensor,
        lora: LoraBatch,
        want_grad_N: Tensor | None,
        pause: Pause = lambda: None,
    ) -> Scores:
        """log p(target) of every row; with `want_grad_N` (bool) also its gradient, zero where not wanted.

        The gradient is E[target] − p·E of the frozen head E, so it is right only where no unembedding adapter acts.
        """
        # Filled chunk by chunk; no tensor of rows × vocabulary ever exists.
        logp_NK = torch.empty(targets_NK.shape, device=h_ND.device)
        grad_ND = torch.zeros_like(h_ND) if want_grad_N is not None else None
        for rows in self._chunk_spans(h_ND.shape[0]):
            wanted_N = want_grad_N[rows] if want_grad_N is not None else None
            # A chunk of rows that nobody weighs, such as prompts, saves its second product with the head.
            want_grad = wanted_N is not None and bool(wanted_N.any())
            logits_NV = self._product(h_ND, rows, lora)
            logp_NK[rows] = self._score_chunk(logits_NV, targets_NK[rows], want_grad)
            if grad_ND is not None and wanted_N is not None and want_grad:
                grad_ND[rows] = self._grad(logits_NV, targets_NK[rows, 0], wanted_N)
            pause()
        return Scores(logp_NK, grad_ND)

    def _score_chunk(self, logits_NV: Tensor, targets_NK: Tensor, want_p: bool) -> Tensor:
        """log p(target), (N, K); with `want_p` the logits, in their own place, become probabilities."""
        logp: list[Tensor] = []
        for piece in self._pieces(slice(0, len(targets_NK))):
            piece_NV, targets = logits_NV[piece], targets_NK[piece]
            # The target's logit must be read before `to_probabilities` writes over it.
            target_NK = piece_NV[: len(targets)].gather(1, targets).float()
            normalizer_N1 = to_probabilities(piece_NV) if want_p else normalizer_of(piece_NV)
            logp.append(target_NK - normalizer_N1[: len(targets)])
        return torch.cat(logp)

    def _products(self, h_ND: Tensor, lora: LoraBatch) -> Iterator[tuple[slice, Tensor]]:
        """(rows, their logits) by chunks."""
        for rows in self._chunk_spans(h_ND.shape[0]):
            yield rows, self._product(h_ND, rows, lora)

    def _chunk_spans(self, n_rows: int) -> Iterator[slice]:
        starts = range(0, n_rows, self.chunk_rows)
        return (slice(start, min(start + self.chunk_rows, n_rows)) for start in starts)

    def _product(self, h_ND: Tensor, rows: slice, lora: LoraBatch) -> Tensor:
        """The logits of a chunk in the compute dtype, with padding rows at the end if rows are fixed."""
        h_chunk = h_ND[rows]
        if self.fixed_rows:
            h_chunk = F.pad(h_chunk, (0, 0, 0, self.chunk_rows - h_chunk.shape[0]))
        logits_NV = rows_of(lora, rows).linear(h_chunk, self.decoder.head, self.decoder.spec.n_layers, UNEMBED)
        return self.decoder.capped(logits_NV)

    def _pieces(self, rows: slice) -> Iterator[slice]:
        """The rows of a chunk, counted from its start, as many at a time as the softmax likes."""
        n_rows = rows.stop - rows.start
        size = piece_rows(self.decoder.device) or max(n_rows, self.chunk_rows)
        return (slice(start, start + size) for start in range(0, n_rows, size))

    def _grad(self, p_NV: Tensor, targets_N: Tensor, wanted_N: Tensor) -> Tensor:
        head = self.decoder.head
        p_NV = p_NV[: len(wanted_N)]
        # Σ p · E is one product with the frozen head; rows that are not wanted are left out of it.
        mean_ND = head.input_grad(p_NV if bool(wanted_N.all()) else p_NV[wanted_N])
        grad_ND = torch.zeros(len(targets_N), head.d_in, dtype=mean_ND.dtype, device=p_NV.device)
        grad_ND[wanted_N] = head.rows(targets_N[wanted_N]) - mean_ND
        return grad_ND

    def backward(
        self, h_ND: Tensor, targets_NK: Tensor, dlogp_NK: Tensor, lora: LoraBatch, pause: Pause = lambda: None
    ) -> Tensor:
        """Sends ∂loss/∂logp back to the hidden states, (N, D), and to unembedding adapters; logits are made again."""
        dh_ND = torch.zeros_like(h_ND)
        for rows in self._chunk_spans(h_ND.shape[0]):
            # A leaf for each chunk, so that its graph, rows × vocabulary wide, is gone before the next one begins.
            h_chunk = h_ND[rows].detach().requires_grad_()
            with torch.enable_grad():
                logits_NV = rows_of(lora, rows).linear(h_chunk, self.decoder.head, self.decoder.spec.n_layers, UNEMBED)
                logits_NV = self.decoder.capped(logits_NV)
            with torch.no_grad():
                # d logits = scatter(dlogp) − p · Σ dlogp, without autograd's copies of rows × vocabulary
                p_NV = logits_NV.float().softmax(-1)
                dlogits_NV = p_NV.mul_(-dlogp_NK[rows].sum(-1, keepdim=True))
                dlogits_NV.scatter_add_(1, targets_NK[rows], dlogp_NK[rows])
            # Through autograd, since this product may carry an unembedding adapter, whose gradient is gathered on the
            # way.
            logits_NV.backward(dlogits_NV.to(logits_NV.dtype))
            assert h_chunk.grad is not None
            dh_ND[rows] = h_chunk.grad
            pause()
        return dh_ND


def rows_of(lora: LoraBatch, rows: slice) -> LoraBatch:
    """The groups of a batch seen from a run of its rows."""
    return _regroup(lora, lambda row: min(max(row, rows.start), rows.stop) - rows.start)


def groups_at(lora: LoraBatch, picked_N: Tensor) -> LoraBatch:
    """The groups of a batch seen from `picked_N`, ascending row numbers of it."""
    ends = {end for group in lora.groups for end in (group.start, group.stop)}
    # Picked rows ascend, so a group of rows remains a run among them, possibly an empty one.
    moved = {end: int(torch.searchsorted(picked_N, end)) for end in ends}
    return _regroup(lora, moved.__getitem__)


def _regroup(lora: LoraBatch, move: Callable[[int], int]) -> LoraBatch:
    groups = [LoraGroup(move(g.start), move(g.stop), g.weights, g.grad) for g in lora.groups]
    # Neither routes nor pauses are handed on: behind the last layer nothing is routed.
    return LoraBatch([group for group in groups if group.start < group.stop])

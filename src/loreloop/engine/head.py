"""From hidden states to log-probabilities, a chunk of rows at a time, so that rows × vocabulary never stands in memory.

For targets known beforehand the first pass also keeps ∂logp/∂hidden, which makes the backward pass one scaling. Where
the unembedding itself is trained, or a position has several targets, logits are computed again in the backward pass.

Several processes may hold the rows of some tokens each (`model/vocabulary.py`): a row's logits are then those of the
tokens that are held, and what is over all tokens is merged once a call.

Legend: N rows to score, D model width, V vocabulary (or the tokens of it that are held), K targets a row.
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
from loreloop.model.vocabulary import Own

CHUNK_ROWS = 128
FIXED_ROWS = 32


@dataclass(frozen=True)
class Scores:
    """`logp_NK` fp32; `grad_ND` is ∂logp/∂hidden where it was asked for (K is then 1). `share_N1` is how much of each
    row's probability lies with the tokens that are held here; None: all."""

    logp_NK: Tensor
    grad_ND: Tensor | None = None
    share_N1: Tensor | None = None


class Head:
    """Scores hidden states of one decoder. With `fixed_rows` every chunk has one shape, so rows do not matter to
    each other."""

    def __init__(self, decoder: Decoder, fixed_rows: bool) -> None:
        self.decoder, self.fixed_rows = decoder, fixed_rows
        self.chunk_rows = FIXED_ROWS if fixed_rows else CHUNK_ROWS

    def chunks(self, h_ND: Tensor, lora: LoraBatch) -> Iterator[tuple[slice, Tensor]]:
        """(rows, their logits of all tokens) a few at a time; the logits end with padding rows if rows are fixed."""
        for rows in self._chunk_spans(h_ND.shape[0]):
            logits_NV = self.decoder.vocabulary.all_logits(self._product(h_ND, rows, lora))
            for piece in self._pieces(rows):
                # Rows are told without the padding, logits with it: whoever reads them stops at the rows.
                yield slice(rows.start + piece.start, min(rows.start + piece.stop, rows.stop)), logits_NV[piece]

    def normalizer(self, logits_NV: Tensor, plain_N1: Tensor | None = None) -> Tensor:
        """log Σ e^logit of all tokens' logits, (N, 1); with fixed rows the same bits as `score` has. `plain_N1` is what
        the softmax has for it, if that is known."""
        parts = self.decoder.vocabulary.parts(logits_NV) if self.fixed_rows else ()
        if len(parts) > 1:
            return self.decoder.vocabulary.joined([normalizer_of(part_NV) for part_NV in parts])
        return normalizer_of(logits_NV) if plain_N1 is None else plain_N1

    @torch.no_grad()
    def score(
        self,
        h_ND: Tensor,
        targets_NK: Tensor,
        lora: LoraBatch,
        want_grad_N: Tensor | None,
        pause: Pause = lambda: None,
    ) -> Scores:
        """log p(target) of every row; with `want_grad_N` (bool) also its gradient, zero where not wanted. Pauses after
        each product, as `backward` does.

        The gradient is E[target] − p·E of the frozen head E, so it is right only where no unembedding adapter acts.
        """
        # Filled chunk by chunk; no tensor of rows × vocabulary ever exists.
        own = self.decoder.vocabulary.own(targets_NK)
        target_NK = torch.empty(targets_NK.shape, device=h_ND.device)
        normalizer_N1 = torch.empty(len(h_ND), 1, device=h_ND.device)
        mean_ND = torch.zeros_like(h_ND) if want_grad_N is not None else None
        for rows in self._chunk_spans(h_ND.shape[0]):
            wanted_N = want_grad_N[rows] if want_grad_N is not None else None
            # A chunk of rows that nobody weighs, such as prompts, saves its second product with the head.
            want_grad = wanted_N is not None and bool(wanted_N.any())
            logits_NV = self._product(h_ND, rows, lora)
            self._read(logits_NV, own[rows], target_NK[rows], normalizer_N1[rows], want_p=want_grad)
            if mean_ND is not None and wanted_N is not None and want_grad:
                pause()  # between two products, each of which takes as long as some of a layer's
                self._mean(logits_NV, wanted_N, mean_ND[rows])
            pause()
        merged = self.decoder.vocabulary.merged(normalizer_N1, target_NK)
        logp_NK, share_N1 = merged.target_NK - merged.normalizer_N1, merged.share_N1
        if mean_ND is None or want_grad_N is None:
            return Scores(logp_NK, None, share_N1)
        return Scores(logp_NK, self._grad(mean_ND, own, want_grad_N, share_N1), share_N1)

    def _read(self, logits_NV: Tensor, own: Own, target_NK: Tensor, normalizer_N1: Tensor, *, want_p: bool) -> None:
        """Fills in the targets' logits, (N, K), and log Σ e^logit, (N, 1); with `want_p` the logits become
        probabilities in their own place."""
        for piece in self._pieces(slice(0, len(target_NK))):
            piece_NV, index_NK = logits_NV[piece], own.index_NK[piece]
            # The target's logit must be read before `to_probabilities` writes over it.
            target_NK[piece] = own[piece].only(piece_NV[: len(index_NK)].gather(1, index_NK).float())
            piece_N1 = to_probabilities(piece_NV) if want_p else normalizer_of(piece_NV)
            normalizer_N1[piece] = piece_N1[: len(index_NK)]

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

    def _mean(self, p_NV: Tensor, wanted_N: Tensor, mean_ND: Tensor) -> None:
        """Fills in p · E of the rows that are wanted."""
        p_NV = p_NV[: len(wanted_N)]
        # Σ p · E is one product with the frozen head; rows that are not wanted are left out of it.
        mean_ND[wanted_N] = self.decoder.head.input_grad(p_NV if bool(wanted_N.all()) else p_NV[wanted_N])

    def _grad(self, mean_ND: Tensor, own: Own, wanted_N: Tensor, share_N1: Tensor | None) -> Tensor:
        """E[target] − p · E of the rows that are wanted, in place of p · E; `share_N1` is what p has to be multiplied
        by."""
        for rows in self._chunk_spans(len(mean_ND)):
            picked = wanted_N[rows].nonzero()[:, 0] + rows.start
            target_ND = self.decoder.head.rows(own.index_NK[picked, 0]).to(mean_ND.dtype)
            if own.held_NK is not None:
                target_ND = target_ND.masked_fill(~own.held_NK[picked], 0)
            part_ND = mean_ND[picked] if share_N1 is None else mean_ND[picked] * share_N1[picked].to(mean_ND.dtype)
            mean_ND[picked] = target_ND - part_ND
        return self.decoder.vocabulary.summed(mean_ND)

    def backward(
        self,
        h_ND: Tensor,
        targets_NK: Tensor,
        dlogp_NK: Tensor,
        lora: LoraBatch,
        pause: Pause = lambda: None,
        share_N1: Tensor | None = None,
    ) -> Tensor:
        """Sends ∂loss/∂logp back to the hidden states, (N, D), and to unembedding adapters; logits are made again.
        `share_N1` is that of the scores."""
        dh_ND = torch.zeros_like(h_ND)
        own = self.decoder.vocabulary.own(targets_NK)
        for rows in self._chunk_spans(h_ND.shape[0]):
            # A leaf for each chunk, so that its graph, rows × vocabulary wide, is gone before the next one begins.
            h_chunk = h_ND[rows].detach().requires_grad_()
            with torch.enable_grad():
                logits_NV = rows_of(lora, rows).linear(h_chunk, self.decoder.head, self.decoder.spec.n_layers, UNEMBED)
                logits_NV = self.decoder.capped(logits_NV)
            pause()
            with torch.no_grad():
                # d logits = scatter(dlogp) − p · Σ dlogp, without autograd's copies of rows × vocabulary
                p_NV = logits_NV.float().softmax(-1)
                weight_N1 = -dlogp_NK[rows].sum(-1, keepdim=True)
                # The softmax is over the tokens that are held, and has too much where others have some.
                dlogits_NV = p_NV.mul_(weight_N1 if share_N1 is None else weight_N1 * share_N1[rows])
                dlogits_NV.scatter_add_(1, own[rows].index_NK, own[rows].only(dlogp_NK[rows]))
            pause()
            # Through autograd, since this product may carry an unembedding adapter, whose gradient is gathered on the
            # way.
            logits_NV.backward(dlogits_NV.to(logits_NV.dtype))
            assert h_chunk.grad is not None
            dh_ND[rows] = h_chunk.grad
            pause()
        return self.decoder.vocabulary.summed(dh_ND)


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

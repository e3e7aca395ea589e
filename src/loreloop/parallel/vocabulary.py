"""The vocabulary over the ranks of a tensor group: each holds the rows of some tokens, in embedding and head alike.

Scoring exchanges two numbers a row and target and not the logits. A draw gathers its few rows' logits, so that every
rank has the same bits and draws by the same code as one process: filters, penalties and grammars look at all tokens.

Legend: T tokens, N rows to score, K targets a row, D model width, V tokens (of a rank, or all), R ranks, C = 1 + K.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn import functional as F

from loreloop.model.linear import rows_of
from loreloop.model.packed_weights import TILE, PackedWeight
from loreloop.model.vocabulary import Merged, Own
from loreloop.parallel.collectives import gathered, summed


def vocabulary_borders(n_tokens: int, n_ranks: int) -> tuple[int, ...]:
    """Where each rank's tokens begin, and where the last one's end. Whole tiles of outputs if there are enough of them;
    what is left over goes to the last rank."""
    unit = TILE if n_tokens >= n_ranks * TILE else 1
    return (*(rank * (n_tokens // unit) // n_ranks * unit for rank in range(n_ranks)), n_tokens)


@dataclass(frozen=True)
class CutVocabulary:
    """The tokens from `borders[rank]` to the next border. See `Vocabulary`."""

    borders: tuple[int, ...]
    rank: int
    group: dist.ProcessGroup

    def embed(self, weight: Tensor | PackedWeight, ids_T: Tensor) -> Tensor:
        """Each row is looked up where it lies; the sum with the others' zeros is exact."""
        return summed(self.embed_part(weight, ids_T), self.group)

    def embed_part(self, weight: Tensor | PackedWeight, ids_T: Tensor) -> Tensor:
        """The embeddings of the tokens that are held here, zeros for others; (T, D)."""
        own = self.own(ids_T)
        assert own.held_NK is not None
        return rows_of(weight, own.index_NK).masked_fill(~own.held_NK[..., None], 0)

    def own(self, targets_NK: Tensor) -> Own:
        """See `Vocabulary`, as all of the following."""
        start, stop = self.borders[self.rank], self.borders[self.rank + 1]
        held_NK = (targets_NK >= start) & (targets_NK < stop)
        return Own(torch.where(held_NK, targets_NK - start, 0), held_NK)

    def merged(self, normalizer_N1: Tensor, target_NK: Tensor) -> Merged:
        """One exchange for all rows of a batch, since its latency is that of a single row."""
        found_RNC = gathered(torch.cat((normalizer_N1, target_NK), 1), self.group)
        whole_N1 = self.joined(found_RNC[..., :1].unbind(0))
        # Only one of the summands is not zero, so the sum is exact.
        return Merged(whole_N1, found_RNC[..., 1:].sum(0), (normalizer_N1 - whole_N1).exp())

    def all_logits(self, logits_NV: Tensor) -> Tensor:
        """See `Vocabulary`."""
        widths = self._widths
        # The wire takes tensors of one shape only; what fills up is cut off again.
        found_RNV = gathered(F.pad(logits_NV, (0, max(widths) - logits_NV.shape[1])), self.group)
        return torch.cat([found_NV[:, :width] for found_NV, width in zip(found_RNV, widths, strict=True)], 1)

    def parts(self, logits_NV: Tensor) -> Sequence[Tensor]:
        """See `Vocabulary`."""
        return [part_NV.contiguous() for part_NV in logits_NV.split(self._widths, 1)]

    def joined(self, normalizers_N1: Sequence[Tensor]) -> Tensor:
        """See `Vocabulary`."""
        stacked_RN1 = torch.stack(tuple(normalizers_N1))
        top_N1 = stacked_RN1.amax(0)
        total_N1 = torch.zeros_like(top_N1)
        # One after the other, so that a row's sum is the same whatever rows stand beside it.
        for each_N1 in stacked_RN1:
            total_N1 += (each_N1 - top_N1).exp()
        return total_N1.log() + top_N1

    def summed(self, x_ND: Tensor) -> Tensor:
        """See `Vocabulary`."""
        return summed(x_ND, self.group)

    @property
    def _widths(self) -> list[int]:
        return [stop - start for start, stop in pairwise(self.borders)]

"""Which tokens' rows of the embedding and of the head a decoder holds, and what is said to whoever holds the others.

A decoder by itself holds all rows, and has nothing to say. Knows no processes.

Legend: T tokens, N rows to score, K targets a row, D model width, V tokens whose rows are held.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from loreloop.model.linear import rows_of
from loreloop.model.packed_weights import PackedWeight


@dataclass(frozen=True)
class Own:
    """Where targets lie among the rows that are held: `index_NK`, and which of them do, `held_NK`; None: all. Where one
    is not held its index is any."""

    index_NK: Tensor
    held_NK: Tensor | None = None

    def only(self, numbers_NK: Tensor) -> Tensor:
        """The numbers of targets that are held here, zero for others."""
        return numbers_NK if self.held_NK is None else numbers_NK.masked_fill(~self.held_NK, 0)

    def __getitem__(self, rows: slice) -> Own:
        return Own(self.index_NK[rows], None if self.held_NK is None else self.held_NK[rows])


@dataclass(frozen=True)
class Merged:
    """Over all tokens: log Σ e^logit (N, 1) and the targets' logits (N, K). `share_N1` is how much of a row's
    probability lies with the tokens that are held; None: all of it."""

    normalizer_N1: Tensor
    target_NK: Tensor
    share_N1: Tensor | None = None


class Vocabulary(Protocol):
    """The rows that are held, and the ways to results over all tokens. Every holder must call the same, in the same
    order."""

    def embed(self, weight: Tensor | PackedWeight, ids_T: Tensor) -> Tensor:
        """The embeddings of any tokens, (T, D), from the rows that are held."""
        ...

    def own(self, targets_NK: Tensor) -> Own:
        """Which targets are held."""
        ...

    def merged(self, normalizer_N1: Tensor, target_NK: Tensor) -> Merged:
        """From those over the tokens that are held, both fp32; a target that is not held comes as zero."""
        ...

    def all_logits(self, logits_NV: Tensor) -> Tensor:
        """The logits of all tokens, the same bits for every holder."""
        ...

    def parts(self, logits_NV: Tensor) -> Sequence[Tensor]:
        """Logits of all tokens by their holders."""
        ...

    def joined(self, normalizers_N1: Sequence[Tensor]) -> Tensor:
        """log Σ e^logit of all tokens from those of their holders, (N, 1), by the operations of `merged`."""
        ...

    def summed(self, x_ND: Tensor) -> Tensor:
        """The sum of what each holder has from its tokens."""
        ...


class WholeVocabulary:
    """That of a decoder which holds all rows. See `Vocabulary`."""

    def embed(self, weight: Tensor | PackedWeight, ids_T: Tensor) -> Tensor:
        """See `Vocabulary`, as all of the following."""
        return rows_of(weight, ids_T)

    def own(self, targets_NK: Tensor) -> Own:
        """See `Vocabulary`."""
        return Own(targets_NK)

    def merged(self, normalizer_N1: Tensor, target_NK: Tensor) -> Merged:
        """See `Vocabulary`."""
        return Merged(normalizer_N1, target_NK)

    def all_logits(self, logits_NV: Tensor) -> Tensor:
        """See `Vocabulary`."""
        return logits_NV

    def parts(self, logits_NV: Tensor) -> Sequence[Tensor]:
        """See `Vocabulary`."""
        return (logits_NV,)

    def joined(self, normalizers_N1: Sequence[Tensor]) -> Tensor:
        """See `Vocabulary`."""
        (normalizer_N1,) = normalizers_N1
        return normalizer_N1

    def summed(self, x_ND: Tensor) -> Tensor:
        """See `Vocabulary`."""
        return x_ND


WHOLE_VOCABULARY = WholeVocabulary()

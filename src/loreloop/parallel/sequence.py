"""The sequence plan: the rows of the residual stream, and of the norms on it, are cut over the tensor group.

A training rank keeps its rows of what every layer gives, and all rows only inside of attention and feed-forward, which
begin with a gather of rows and end with a sum of which each rank takes its own. Between them lie norms, scales and
additions, each of a row by itself. The states of adapters are those of the tensor plan. Sampling computes few rows at a
time and does not cut them. Stages of a pipeline hand on, each rank to that at its place in the next stage, the rows
that it has.

Legend: T rows of all ranks, S rows of one (the last ranks' may be filled up with zeros), D model width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn import functional as F

from loreloop.model.decoder import Attend, Decoder, ImageRows, Layer, Mixer, Ropes
from loreloop.model.lora import Adapters
from loreloop.model.rope import Rope
from loreloop.parallel.collectives import all_rows, enter_rows, leave_rows, scattered_sum
from loreloop.parallel.place import Place
from loreloop.parallel.tensor_parts import CutMixer
from loreloop.parallel.vocabulary import CutVocabulary


@dataclass(frozen=True)
class RowsMixer:
    """A part of a layer of which each rank computes a share of the sum, from all rows, and takes its rows of it."""

    share: Mixer
    group: dist.ProcessGroup

    def __call__(self, x_TD: Tensor, rope: Rope, attend: Attend, lora: Adapters) -> Tensor:
        # What comes and goes are the rank's rows. The angles are those of all rows, and know how many are no filling.
        x_TD = enter_rows(x_TD, len(rope.cos_T1E), self.group)
        return leave_rows(self.share(x_TD, rope, attend, lora), self.group)


class RowsDecoder(Decoder):
    """A decoder that shares its weights with one of the tensor plan. `embed` and `layer` give a rank's rows (S, D), and
    `final` those of all ranks."""

    def __init__(self, decoder: Decoder, group: dist.ProcessGroup) -> None:
        layers = [_by_rows(layer, group) for layer in decoder.layers]
        super().__init__(decoder.spec, decoder.embedding_VD, layers, decoder.final_norm, decoder.head)
        self.vocabulary, self.group = decoder.vocabulary, group

    def embed(self, tokens_T: Tensor, images: ImageRows | None = None) -> Tensor:
        """(T,) int64 → (S, D) fp32. Ids of image rows are of no vocabulary."""
        assert isinstance(self.vocabulary, CutVocabulary)
        part_TD = self.vocabulary.embed_part(self.embedding_VD, tokens_T.clamp(min=0))
        n_filling = -len(tokens_T) % self.group.size()
        x_SD = self._scaled(scattered_sum(F.pad(part_TD, (0, 0, 0, n_filling)), self.group))
        if images is None:
            return x_SD
        own = self._own(images, len(x_SD))
        return x_SD.index_copy(0, own.rows_N, own.embedding_ND.float())

    def rows_here(self, n_rows: int) -> int:
        """As many on each rank; the last ones' are filled up."""
        return -(-n_rows // self.group.size())

    def layer(
        self, index: int, x_TD: Tensor, ropes: Ropes, attend: Attend, lora: Adapters, images: ImageRows | None = None
    ) -> Tensor:
        """One layer over the rank's rows of the residual stream."""
        own = None if images is None else self._own(images, len(x_TD))
        return super().layer(index, x_TD, ropes, attend, lora, own)

    def final(self, x_TD: Tensor) -> Tensor:
        """(S, D) fp32 → all rows in the compute dtype, ready for the head, perhaps with filling behind them."""
        return all_rows(super().final(x_TD), self.group)

    def _own(self, images: ImageRows, n_own: int) -> ImageRows:
        """Those of a batch's image rows that are the rank's."""
        first = self.group.rank() * n_own
        picked = torch.nonzero((images.rows_N >= first) & (images.rows_N < first + n_own))[:, 0]
        additions = tuple(addition[picked] for addition in images.additions)
        return ImageRows(images.rows_N[picked] - first, images.embedding_ND[picked], additions)


def training_decoder(decoder: Decoder, place: Place) -> Decoder:
    """What a trainer works on at a place: the decoder itself, or one that cuts rows."""
    return RowsDecoder(decoder, place.groups["tp"]) if place.mesh.cuts_rows else decoder


def _by_rows(layer: Layer, group: dist.ProcessGroup) -> Layer:
    parts = (layer.attention, layer.feed_forward)
    attention, feed_forward = (RowsMixer(part.share, group) for part in parts if isinstance(part, CutMixer))
    return replace(layer, attention=attention, feed_forward=feed_forward)

"""An adapter as a rank holds it, and as it is published: whole. In a mesh of one both are the same.

No rank ever holds a whole adapter that it does not have itself: what is whole comes by in runs of sites, each of which
the first rank puts together from what the others send, and forgets before the next. It asks for each when it has room
for it, so that nobody sends to one that has failed. Knows neither optimizers nor files.

Legend: P parts of a site, R rank, I inputs.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from loreloop.model.lora import AdapterView, LoraLayout, SiteKey, drawn_a, outline
from loreloop.model.lora_region import WHOLE, Factor, Matrix, Region
from loreloop.model.spec import DecoderSpec
from loreloop.parallel.collectives import summed
from loreloop.parallel.place import ALONE, Place
from loreloop.parallel.shares import Share, share_of
from loreloop.protocol.training import LoraSpec

RUN_NUMBERS = 1 << 23  # of a run at most, but for a site that has more: small ones are sent together


class AdapterShare:
    """The share of one process of an adapter for the decoder `spec`; `layout` is that of its numbers."""

    def __init__(self, spec: DecoderSpec, lora: LoraSpec, place: Place = ALONE) -> None:
        self.place, self.whole_layout = place, LoraLayout(spec, lora)
        self.share = share_of(spec, place.mesh, place.rank)
        self.layout = self.share.layout(lora) if place.n_ranks > 1 else self.whole_layout

    def take(self, whole: Tensor) -> Tensor:
        """The rank's numbers of a whole adapter's, both flat."""
        return self.share.take(AdapterView(self.whole_layout, whole)).flat

    def region(self, matrix: Matrix) -> Region:
        """Which part the rank has of a matrix, at a site that is in its layout."""
        return self.share.region(matrix, self.whole_layout)

    def draw(self, mine: Tensor) -> None:
        """Fills the rank's numbers, which are zeros, with those of a fresh adapter."""
        view = AdapterView(self.layout, mine)
        # Every rank draws all numbers, a matrix at a time, so that a seed means one adapter however it is cut.
        for matrix, a_PRI in drawn_a(self.whole_layout, self.layout.lora.seed):
            if self.layout.has(matrix.layer, matrix.site):
                self.region(matrix).take(a_PRI, view.at(matrix))

    def wholes(self, mine: Tensor, parts: Iterable[LoraLayout] | None = None) -> Iterator[AdapterView]:
        """The whole adapter of which every rank gives its numbers, some neighbouring sites at a time, on the first
        rank. All ranks must go to the end; those that are not the first send, and get nothing. Where the first fails
        within `Place.by_first`, OutOfService comes on the others in place of what it would have asked for next. `parts`
        of the whole layout, if not all in its order, are given as they are asked for."""
        if self.place.n_ranks == 1:
            view = AdapterView(self.layout, mine)
            # What lies in one piece already goes in one.
            yield from [view] if parts is None else (view.part(part) for part in parts)
            return
        for part in self._runs() if parts is None else parts:
            yield from self._gathered(part, self._own(part, mine))

    def whole_gradients(self, mine: Tensor) -> Iterator[AdapterView]:
        """The gradient of which every rank has gathered its part, and goes on gathering; otherwise as `wholes`."""
        if self.place.n_ranks == 1:
            yield AdapterView(self.layout, mine)
            return
        for part in self._runs():
            own = self._own(part, mine)
            # A copy, since the parts of a copied matrix would be added up again at the next step.
            yield from self._gathered(part, AdapterView(own.layout, own.flat.clone()), is_partial=True)

    def sum_up(self, gradient: AdapterView) -> None:
        """Makes the gradients of copied matrices whole, of which each rank has gathered a part."""
        for axis, group in self.place.groups.items():
            for matrix in self.share.matrices(gradient, axis, "partial"):
                matrix.copy_(summed(matrix, group))
            for shared in self.share.shared(gradient, axis):
                # A place for each set of ranks, so that one sum over all of them serves every set.
                n_sets, own = group.size() // shared.copies, self.place.along(axis) // shared.copies
                places = shared.rows.new_zeros(n_sets, *shared.rows.shape)
                places[own] = shared.rows
                shared.rows.copy_(summed(places, group)[own])

    def keep_part(self, gradient: Tensor) -> None:
        """Makes the rank's numbers of a whole gradient its part of it, as if it had gathered that: parts of copied
        matrices add up."""
        mine = AdapterView(self.layout, gradient)
        for axis in self.place.groups:
            if self.place.along(axis):
                for matrix in self.share.matrices(mine, axis, "partial"):
                    matrix.zero_()
            for shared in self.share.shared(mine, axis):
                if self.place.along(axis) % shared.copies:
                    shared.rows.zero_()

    @functools.cached_property
    def counted(self) -> Tensor | None:
        """Which of the rank's numbers it counts where each number of the whole is to count once, (size,) bool; None:
        all."""
        if self.place.is_first:
            return None
        counted = AdapterView(self.layout, torch.ones(self.layout.size, dtype=torch.bool))
        for axis in self.place.groups:
            if self.place.along(axis):
                for held in ("partial", "copied"):
                    for matrix in self.share.matrices(counted, axis, held):
                        matrix.fill_(False)
                for shared in self.share.shared(counted, axis):
                    if self.place.along(axis) % shared.copies:
                        shared.rows.fill_(False)
        return counted.flat

    def _runs(self) -> Iterator[LoraLayout]:
        """The whole adapter in parts of some neighbouring sites."""
        keys: list[SiteKey] = []
        n_numbers = 0
        for key, place in self.whole_layout.places.items():
            size = place.shape.size(self.whole_layout.rank)
            if keys and n_numbers + size > RUN_NUMBERS:
                yield self.whole_layout.part(keys)
                keys, n_numbers = [], 0
            keys.append(key)
            n_numbers += size
        if keys:
            yield self.whole_layout.part(keys)

    def _own(self, part: LoraLayout, mine: Tensor) -> AdapterView:
        """This rank's numbers of some sites, which are neighbours in its layout as well."""
        own = self.layout.part(part.places)
        return AdapterView(own, mine[self.layout.range_of(own)])

    def _gathered(self, part: LoraLayout, own: AdapterView, *, is_partial: bool = False) -> Iterator[AdapterView]:
        """Sites of the whole adapter, on the first rank; `own` are this rank's numbers there. With `is_partial` those
        of copied matrices are added up before, in their place."""
        senders = self._senders(part)
        # Whatever may fail, for want of memory say, comes before the word: from then on the others wait for this rank.
        whole = AdapterView(part, own.flat.new_empty(part.size)) if self.place.is_first else None
        shapes = {
            rank: self._others[rank].shapes(part, matrices) for rank, matrices in senders.items() if self.place.is_first
        }
        rooms = {
            rank: self._room(whole, rank, senders[rank], each) for rank, each in shapes.items() if whole is not None
        }
        self.place.go_on()
        if is_partial:
            self.place.together(lambda: self.sum_up(own))
        if whole is None:
            if matrices := senders.get(self.place.rank):
                self.place.send_first(torch.cat([own.at(matrix).flatten() for matrix in matrices]))
            return
        for rank, room in rooms.items():
            self.place.received(rank, room)
        for key in own.layout.places:
            for matrix in part.matrices(*key):
                self.region(matrix).put(own.at(matrix), whole.at(matrix))
        for rank, matrices in senders.items():
            pieces = rooms.pop(rank).split([shape.numel() for shape in shapes[rank]])
            for matrix, shape, piece in zip(matrices, shapes[rank], pieces, strict=True):
                self._others[rank].region(matrix).put(piece.view(shape), whole.at(matrix))
        yield whole

    def _room(self, whole: AdapterView, rank: int, matrices: Sequence[Matrix], shapes: Sequence[torch.Size]) -> Tensor:
        """Where the numbers arrive that a rank sends of some matrices: in their place, where it sends whole sites."""
        n_numbers = sum(shape.numel() for shape in shapes)
        sites = whole.layout.part(dict.fromkeys((matrix.layer, matrix.site) for matrix in matrices))
        last = max(
            whole.layout.places[key].start + place.shape.size(whole.layout.rank) for key, place in sites.places.items()
        )
        are_neighbours = last == whole.layout.range_of(sites).stop and sites.size == n_numbers
        if are_neighbours and all(self._others[rank].region(matrix) == WHOLE for matrix in matrices):
            return whole.part(sites).flat
        return whole.flat.new_empty(n_numbers)

    def _senders(self, part: LoraLayout) -> dict[int, list[Matrix]]:
        """Of each further rank the matrices of these sites of which it has numbers that no rank before it has."""
        senders: dict[int, list[Matrix]] = {}
        for matrix in (matrix for key in part.places for matrix in part.matrices(*key)):
            known: list[Region] = []
            for rank, other in enumerate(self._others):
                if other.layout.has(matrix.layer, matrix.site) and (region := other.region(matrix)) not in known:
                    known.append(region)
                    if rank:
                        senders.setdefault(rank, []).append(matrix)
        return senders

    @functools.cached_property
    def _others(self) -> list[_Other]:
        """What each rank of the mesh holds, by rank."""
        spec, mesh = self.share.spec, self.place.mesh
        return [_Other(share_of(spec, mesh, rank), self.whole_layout) for rank in range(mesh.n_ranks)]


class _Other:
    """What a rank holds of an adapter, as every rank can tell."""

    def __init__(self, share: Share, whole: LoraLayout) -> None:
        self.share, self.whole, self.layout = share, whole, share.layout(whole.lora)
        self._known: dict[tuple[str, Factor, int], Region] = {}

    def region(self, matrix: Matrix) -> Region:
        """As `AdapterShare.region`. Layers are cut alike, and a large mesh would count for seconds."""
        key = (matrix.site, matrix.factor, matrix.part)
        if key not in self._known:
            self._known[key] = self.share.region(matrix, self.whole)
        return self._known[key]

    def shapes(self, part: LoraLayout, matrices: Sequence[Matrix]) -> list[torch.Size]:
        """Of what the rank holds of some matrices among these sites."""
        held = outline(self.layout.part(part.places), torch.float32)
        return [held.at(matrix).shape for matrix in matrices]

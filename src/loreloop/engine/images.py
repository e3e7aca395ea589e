"""Images among token ids: every token of every image has an id of its own, below zero.

Equal ids then mean equal prefixes, for packing as for the sampler's tree, and nothing else needs to know of images. The
tower runs when an image's tokens are first computed; what it gave is kept, the longest unused going first.

Legend: N tokens of a sequence, T rows of a batch, C colours, H rows, W columns of pixels, D model width.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from loreloop.images.check import chunk_cut
from loreloop.images.files import ImageLimits, read_image
from loreloop.images.pixels import pixels_CHW
from loreloop.images.sizes import Cut
from loreloop.model.decoder import ImageRows
from loreloop.model.tower import ImageFeatures, Vision
from loreloop.parallel.place import ALONE, Place
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.images import ImageRules
from loreloop.protocol.token_ids import unpack_ids
from loreloop.protocol.training import Chunk, ImageChunk, TextChunk

Ids = NDArray[np.int64]
KNOWN_IMAGES = 1 << 16  # whose ids are remembered, so that no other gets them
TOKEN_BITS = 20  # of an id: which token of its image; the 43 above are the image's
UNBOUNDED = ImageLimits(1 << 40, 1 << 40)  # what comes here has been checked against the server's limits


@dataclass(frozen=True)
class PlacedImage:
    """An image whose tokens are first_id, first_id + 1, …"""

    key: bytes
    first_id: int
    chunk: ImageChunk
    cut: Cut


@dataclass(frozen=True)
class TokenSequence:
    """Token ids (N,); `positions_N3` where an image's tokens have rows and columns. What follows goes on from
    `next_position`."""

    tokens: Ids
    next_position: int
    positions_N3: Ids | None = None
    images: tuple[PlacedImage, ...] = ()


class ImageTable:
    """The images that one engine has seen. Without `vision` it refuses them. `secret` outlives the engine. Processes of
    one engine, each at its `place`, take and refuse the same."""

    def __init__(
        self,
        vision: Vision | None,
        device: torch.device,
        max_bytes: int,
        secret: bytes = b"",
        place: Place = ALONE,
    ) -> None:
        self.vision, self.device, self.max_bytes, self.secret, self.place = vision, device, max_bytes, secret, place
        self.owners: OrderedDict[int, bytes] = OrderedDict()  # by first id
        self.cuts: OrderedDict[bytes, Cut] = OrderedDict()
        self.features: OrderedDict[bytes, ImageFeatures] = OrderedDict()
        self.n_computed = 0  # runs of the tower

    def lay_out(self, chunks: Sequence[Chunk]) -> TokenSequence:
        """The chunks as one sequence. BadRequest for what cannot be seen; OutOfService where some processes of an
        engine can see it and others cannot."""
        parts: list[Ids] = []
        positions: list[Ids] = []
        placed: list[PlacedImage] = []
        # Text and images count on together: positions follow each other across chunks even where an image's axes
        # differ.
        position = 0
        for chunk in chunks:
            if isinstance(chunk, TextChunk):
                parts.append(unpack_ids(chunk.tokens).astype(np.int64))
                positions.append(np.arange(position, position + len(chunk))[:, None].repeat(3, 1))
                position += len(chunk)
            else:
                placed.append(self._place(chunk))
                parts.append(placed[-1].first_id + np.arange(placed[-1].cut.n_tokens))
                positions.append(self._positions(placed[-1].cut, position))
                # With three axes an image takes as many positions as its longer side, however many tokens it has.
                position = int(positions[-1].max()) + 1
        tokens = np.concatenate(parts) if parts else np.empty(0, np.int64)
        # Text alone has one position on all axes, for which the plain form is cheaper everywhere.
        turned = bool(placed) and self.vision is not None and self.vision.rules.multi_axis
        return TokenSequence(tokens, position, np.concatenate(positions) if turned else None, tuple(placed))

    def rows(self, tokens_T: Ids, images: Iterable[PlacedImage]) -> ImageRows | None:
        """What enters the decoder at the rows of a batch that hold tokens of these images; None where none does."""
        rows: list[Ids] = []
        embedding: list[torch.Tensor] = []
        additions: list[tuple[torch.Tensor, ...]] = []
        # An image that several sequences show is looked up once.
        for image in {image.first_id: image for image in images}.values():
            numbers_T = tokens_T - image.first_id
            image_rows = np.flatnonzero((numbers_T >= 0) & (numbers_T < image.cut.n_tokens))
            if len(image_rows):
                seen, picked = self._features(image), torch.from_numpy(numbers_T[image_rows]).to(self.device)
                rows.append(image_rows)
                embedding.append(seen.embedding_ND[picked])
                additions.append(tuple(addition_ND[picked] for addition_ND in seen.additions))
        if not rows:
            return None
        rows_N = torch.from_numpy(np.concatenate(rows)).to(self.device)
        return ImageRows(
            rows_N, torch.cat(embedding), tuple(torch.cat(layer) for layer in zip(*additions, strict=True))
        )

    def _place(self, chunk: ImageChunk) -> PlacedImage:
        if self.vision is None:
            raise BadRequest("There is an image, but this base model takes text only.")
        # The size that a client asks for changes the pixels, so it belongs to what tells two images apart.
        override = b"%d %d " % (chunk.width or 0, chunk.height or 0)
        key = hashlib.blake2b(override + chunk.data, digest_size=32, key=self.secret).digest()
        # Taken out and put in again, which moves it to the end of those that are forgotten first.
        cut = self.cuts.pop(key, None) or self.place.agreed(partial(_looked_at, chunk, self.vision.rules))
        self.cuts[key] = cut
        if len(self.cuts) > KNOWN_IMAGES:
            self.cuts.popitem(last=False)
        if chunk.expected_tokens not in (None, cut.n_tokens):
            raise BadRequest(
                f"An image is {cut.n_tokens} tokens for this model; {chunk.expected_tokens} were expected."
            )
        return PlacedImage(key, self._first_id(key), chunk, cut)

    def _first_id(self, key: bytes) -> int:
        """Made from the image's hash, so that an engine that executes a batch again packs it as it was.

        The hash is keyed, so that nobody can look for two images in one place; where chance finds them, the later one
        moves.
        """
        # 43 bits of the hash; the low bits of an id count the image's tokens.
        number = int.from_bytes(key[:8], "big") >> 1 + TOKEN_BITS
        # `-(number + 1)` keeps every id below zero, apart from all ids of text.
        while self.owners.setdefault(first_id := -(number + 1) << TOKEN_BITS, key) != key:
            number = (number + 1) % (1 << 63 - TOKEN_BITS)
        self.owners.move_to_end(first_id)
        if len(self.owners) > KNOWN_IMAGES:
            self.owners.popitem(last=False)
        return first_id

    def _positions(self, cut: Cut, first: int) -> Ids:
        """(N, 3): time stands still over an image, rows and columns count."""
        assert self.vision is not None
        if not self.vision.rules.multi_axis:
            return np.arange(first, first + cut.n_tokens)[:, None].repeat(3, 1)
        rows, columns = np.divmod(np.arange(cut.n_tokens), cut.columns)
        return first + np.stack((np.zeros_like(rows), rows, columns), axis=1)

    def _features(self, image: PlacedImage) -> ImageFeatures:
        assert self.vision is not None
        if image.key not in self.features:
            pixels = pixels_CHW(image.chunk, image.cut, self.vision.rules, UNBOUNDED)
            with torch.no_grad():
                self.features[image.key] = self.vision.tower(torch.from_numpy(pixels).to(self.device))
            self.n_computed += 1
            # The newest stays even if it is larger than the bound: the batch at hand needs it.
            while len(self.features) > 1 and sum(f.n_bytes for f in self.features.values()) > self.max_bytes:
                self.features.popitem(last=False)
        self.features.move_to_end(image.key)
        return self.features[image.key]


def _looked_at(chunk: ImageChunk, rules: ImageRules) -> Cut:
    """How an image is cut, once it has been decoded as a whole. One that cannot be is found so before it is part of
    anything: amid a batch it would end the passes of others, and stages of a pipeline come to it at different times."""
    cut = chunk_cut(chunk, rules, UNBOUNDED)
    read_image(chunk.data, UNBOUNDED)
    return cut


def text_only() -> ImageTable:
    """A table that refuses all images."""
    return ImageTable(None, torch.device("cpu"), 0)

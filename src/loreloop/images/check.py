"""Whether an image chunk can be served, before any model sees it: its file, its size, its number of tokens."""

from __future__ import annotations

import msgspec

from loreloop.images.files import ImageLimits, image_size, kind_of, read_image
from loreloop.images.sizes import Cut, cut_of
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.images import ImageRules
from loreloop.protocol.training import ImageChunk

WIRE_FORMATS = ("png", "jpeg")
CHAT_FORMATS = ("png", "jpeg", "webp")


def chunk_cut(chunk: ImageChunk, rules: ImageRules, limits: ImageLimits) -> Cut:
    """How the image is cut; reads the file's head alone."""
    return cut_of(rules.grid, *wanted_size(chunk, limits))


def wanted_size(chunk: ImageChunk, limits: ImageLimits) -> tuple[int, int]:
    """Width and height before the model's own rules."""
    own = image_size(chunk.data, limits)
    if chunk.width is None or chunk.height is None:
        return own
    if chunk.width < 1 or chunk.height < 1 or chunk.width * chunk.height > limits.max_pixels:
        raise BadRequest(
            f"override_dimensions are {chunk.width} × {chunk.height}; both must be 1 or more, and the image at most "
            f"{limits.max_pixels} pixels."
        )
    return chunk.width, chunk.height


def check_kind(chunk: ImageChunk, formats: tuple[str, ...]) -> None:
    """Whether the bytes are what they are said to be, and one of `formats`."""
    kind = kind_of(chunk.data)
    if kind not in formats:
        known = f"{', '.join(formats[:-1])} or {formats[-1]}"
        raise BadRequest(f"The image's bytes are {kind or 'of no known format'}; send {known}.")
    if chunk.format != kind:
        raise BadRequest(f"The image is said to be {chunk.format[:20]!r}, but its bytes are {kind}.")


def checked(chunk: ImageChunk, rules: ImageRules, limits: ImageLimits) -> ImageChunk:
    """The chunk with its true number of tokens as `expected_tokens`. Decodes it once, to see that it is whole."""
    cut = chunk_cut(chunk, rules, limits)
    if chunk.expected_tokens not in (None, cut.n_tokens):
        raise BadRequest(f"The image is {cut.n_tokens} tokens for this model; {chunk.expected_tokens} were expected.")
    read_image(chunk.data, limits)
    return msgspec.structs.replace(chunk, expected_tokens=cut.n_tokens)

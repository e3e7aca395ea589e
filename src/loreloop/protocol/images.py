"""How a vision model cuts an image into tokens, as plain numbers: they come with the engine's greeting.

So the HTTP process can count an image's tokens. Knows no pixels; the arithmetic is in `images/sizes.py`.
"""

from __future__ import annotations

import msgspec

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class SmartGrid(msgspec.Struct, frozen=True, tag="smart"):
    """Sides become multiples of `token_pixels`, the area is brought between the bounds, a square is a token."""

    token_pixels: int
    min_pixels: int
    max_pixels: int


class FixedGrid(msgspec.Struct, frozen=True, tag="fixed"):
    """Every image becomes `width` × `height`, and with that `n_tokens`: stretched, or, with `shorter_side`, scaled
    until its shorter side has that length and cut around its middle."""

    width: int
    height: int
    n_tokens: int  # the same for every image
    shorter_side: int | None = None


class ImageRules(msgspec.Struct, frozen=True):
    """`placeholder` is the id that chat templates write where an image goes. `resample` is numbered as in Pillow.

    With `multi_axis` an image's tokens share a time, and have a row and a column, among rope's positions.
    """

    placeholder: int
    grid: SmartGrid | FixedGrid
    multi_axis: bool = False
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    resample: int = 3
    rescale: float = 1 / 255  # what a colour value of 0 to 255 is multiplied by

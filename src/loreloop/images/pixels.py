"""An image as the array that a vision tower takes: resized, cut, scaled and normalised as published processors do.

Legend: C colours, H rows, W columns of pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from loreloop.images.files import ImageLimits, read_image
from loreloop.images.sizes import Cut
from loreloop.protocol.images import FixedGrid, ImageRules
from loreloop.protocol.training import ImageChunk


def pixels_CHW(chunk: ImageChunk, cut: Cut, rules: ImageRules, limits: ImageLimits) -> NDArray[np.float32]:
    """The image's pixels, (3, H, W) in float32, of a tower's own size. BadRequest where the file cannot be decoded.
    The arithmetic is in the order of transformers' processors: scaled in fp64, rounded to fp32, then normalised."""
    image = read_image(chunk.data, limits)
    resample = Image.Resampling(rules.resample)
    if chunk.width is not None and chunk.height is not None:
        image = image.resize((chunk.width, chunk.height), resample)
    image = image.resize((cut.width, cut.height), resample)
    if isinstance(rules.grid, FixedGrid):
        left, top = (cut.width - rules.grid.width) // 2, (cut.height - rules.grid.height) // 2
        image = image.crop((left, top, left + rules.grid.width, top + rules.grid.height))
    scaled_HWC = (np.asarray(image, np.float64) * rules.rescale).astype(np.float32)
    normal_HWC = (scaled_HWC - np.array(rules.mean, np.float32)) / np.array(rules.std, np.float32)
    return np.ascontiguousarray(normal_HWC.transpose(2, 0, 1))

"""Vectors with a number for each of an adapter's, in safetensors files: written as they come, and read in part.

So are moments and whole states kept. Knows no optimizer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loreloop.formats.tensor_file import write_stream
from loreloop.model.lora import AdapterView, LoraLayout, outline
from loreloop.model.lora_region import Matrix, Region
from loreloop.protocol.checksums import FileSum


def write_vectors(
    path: Path, whole: LoraLayout, vectors: Mapping[str, Iterable[AdapterView]], metadata: Mapping[str, str]
) -> FileSum:
    """Writes fp32 vectors of a layout, each of which comes some neighbouring sites at a time, in order."""
    outlines = {name: outline(whole, torch.float32).flat for name in vectors}
    return write_stream(path, outlines, map(_alone, chain.from_iterable(vectors.values())), metadata)


def fill_vector(file: Any, name: str, whole: LoraLayout, mine: AdapterView, region: Callable[[Matrix], Region]) -> None:
    """Fills a part of a vector that an open file has, of each matrix that it has a region. Reads one matrix at a time,
    and of a stack of experts those alone that it has. ValueError where the vector is not of this layout."""
    stored = file.get_slice(name)
    # A slice would otherwise fill the part from a file of another shape without a word.
    if stored.get_shape() != [whole.size]:
        raise ValueError("its vectors have another size")
    shapes = outline(whole, torch.float32)
    for matrix in (matrix for key in mine.layout.places for matrix in whole.matrices(*key)):
        target, all_of_it, part = mine.at(matrix), shapes.at(matrix), region(matrix)
        start, shape = all_of_it.storage_offset(), all_of_it.shape
        if len(shape) > 2 and part.experts:
            # Experts lie one behind the other, and those of other ranks need not be read.
            start += part.experts.start * shape[1] * shape[2]
            shape, part = target.shape[:1] + shape[1:], Region(rows=part.rows, columns=part.columns)
        part.take(stored[start : start + shape.numel()].view(shape), target)


def _alone(view: AdapterView) -> list[Tensor]:
    return [view.flat]

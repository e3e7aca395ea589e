"""The published tensors of a model folder as plain ones: what is packed is put together."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from torch import Tensor

from loreloop.formats.compressed import Collector, is_packed_part
from loreloop.formats.mxfp4 import MxCollector, dense_stack, stacked_weights
from loreloop.formats.stored_tensors import stored_tensors, stream_tensors
from loreloop.model.tensor_names import own_name


def dense_tensors(folder: Path) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Every published name and how to read its tensor; packed weights come as bf16."""
    collector, floats = Collector(), MxCollector(stacked_weights(name for name, _ in stored_tensors(folder)))
    for published, read in stream_tensors(folder):
        if (weight := floats.weight_of(published)) is not None:
            if (codes := floats.add(published, read)) is not None:
                yield weight, functools.partial(dense_stack, codes)
        elif not is_packed_part(published):
            yield published, read
        elif found := collector.add(published, read):
            yield found[0], found[1].dense
    # Only after the last tensor can a missing part be told from a late one.
    collector.check_complete()
    floats.check_complete()


def some_tensors(folder: Path, names: Collection[str]) -> dict[str, Tensor]:
    """Copies of the tensors with these names (as a family knows them); those that the folder lacks are left out."""
    return {own: read().clone() for published, read in dense_tensors(folder) if (own := own_name(published)) in names}

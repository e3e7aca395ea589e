"""The tensors of a published folder as they stand in its files. Knows no layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from loreloop.formats.float8 import SCALE, descaled
from loreloop.formats.weight_files import weight_files
from loreloop.protocol.errors import BadRequest


@dataclass(frozen=True)
class Stored:
    """A tensor in an open file: called, it is read whole."""

    file: Any
    name: str

    def __call__(self) -> Tensor:
        """All of it."""
        tensor: Tensor = self.file.get_tensor(self.name)
        return tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Known without reading it."""
        return tuple(self.file.get_slice(self.name).get_shape())

    def part(self, rows: slice, columns: slice) -> Tensor:
        """Of a vector these rows, of a matrix these columns of them; nothing else is read."""
        stored = self.file.get_slice(self.name)
        part: Tensor = stored[rows] if len(stored.get_shape()) == 1 else stored[rows, columns]
        return part


def stored_tensors(folder: Path) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """As they stand in its files; what reads one does so before the next is asked for."""
    for file in weight_files(folder):
        try:
            with safe_open(str(file), framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 (not a dict)
                    yield name, Stored(opened, name)
        except (OSError, SafetensorError) as error:
            raise BadRequest(f"{file} cannot be read: {error}.") from None


def stream_tensors(folder: Path) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """The names of a folder's tensors, each with what reads it; those that have scales come multiplied by them."""
    scaled = {name.removesuffix(SCALE) for name, _ in stored_tensors(folder) if name.endswith(SCALE)}
    return descaled(stored_tensors(folder), scaled)

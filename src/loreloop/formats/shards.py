"""Writes the weights of a published folder as they come, a shard at a time, with the index that names them.

Holds one shard in memory. Knows no model.
"""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from loreloop.formats.tensor_file import write_tensors
from loreloop.formats.weight_files import INDEX_FILE, WEIGHTS_FILE

SHARD_BYTES = 1 << 30


class ShardWriter:
    """`add` every tensor, then `close`; one shard alone is called as people expect."""

    def __init__(self, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
        self.folder, self.shard_bytes = folder, shard_bytes
        self._pending: dict[str, Tensor] = {}
        self._n_pending = self._n_total = 0
        self._shards: list[list[str]] = []

    def add(self, name: str, tensor: Tensor) -> None:
        """Takes a tensor, which must not change before its shard is written; a full shard is written at once."""
        n_bytes = tensor.numel() * tensor.element_size()
        # A single tensor beyond the bound gets a shard of its own; tensors are never split.
        if self._pending and self._n_pending + n_bytes > self.shard_bytes:
            self._write()
        self._pending[name] = tensor
        self._n_pending += n_bytes
        self._n_total += n_bytes

    def close(self) -> None:
        """Writes what is left, gives the shards their published names, and writes the index if there are several."""
        self._write()
        n_shards = len(self._shards)
        if n_shards == 1:
            # Readers look for this name first and then need no index.
            self._file(0).rename(self.folder / WEIGHTS_FILE)
            return
        names: dict[str, str] = {}
        for number, tensors in enumerate(self._shards):
            # Names count the shards, whose number is known only now; until then they have temporary ones.
            file = f"model-{number + 1:05}-of-{n_shards:05}.safetensors"
            self._file(number).rename(self.folder / file)
            names |= dict.fromkeys(tensors, file)
        index = {"metadata": {"total_size": self._n_total}, "weight_map": names}
        (self.folder / INDEX_FILE).write_text(json.dumps(index, indent=1))

    def _file(self, number: int) -> Path:
        return self.folder / f"shard-{number}.safetensors"

    def _write(self) -> None:
        write_tensors(self._file(len(self._shards)), self._pending, {"format": "pt"})
        self._shards.append(list(self._pending))
        self._pending, self._n_pending = {}, 0

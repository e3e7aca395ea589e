"""Rows of numbers, of different lengths, as flat arrays for a file, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loreloop.learn.loop.reward.features import Row


@dataclass(frozen=True)
class Rows:
    """Some rows."""

    each: Sequence[Row]

    def arrays(self, name: str) -> dict[str, NDArray[Any]]:
        """Four arrays whose names begin with `name`: forms, all places and all values behind one another, and how many
        there are of each row. Single precision is enough to learn from again."""
        return {
            f"{name}_forms": np.array([row.form for row in self.each], np.float32),
            f"{name}_places": np.concatenate([np.zeros(0, np.int32), *(row.places for row in self.each)]).astype(
                np.int32
            ),
            f"{name}_values": np.concatenate([np.zeros(0), *(row.values for row in self.each)]).astype(np.float32),
            f"{name}_lengths": np.array([len(row.places) for row in self.each], np.int32),
        }

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, NDArray[Any]], name: str) -> Rows:
        """What `arrays` gave, with the rounding of single precision."""
        ends = np.cumsum(arrays[f"{name}_lengths"])[:-1]
        places = np.split(arrays[f"{name}_places"].astype(np.int64), ends)
        values = np.split(arrays[f"{name}_values"].astype(np.float64), ends)
        forms = arrays[f"{name}_forms"].astype(np.float64)
        return cls([Row(*each) for each in zip(forms, places, values, strict=False)])

    def rows(self) -> list[Row]:
        """The rows themselves."""
        return list(self.each)

"""How large an image becomes before it is cut into tokens, and how many tokens that gives. Arithmetic only."""

from __future__ import annotations

import math
from dataclasses import dataclass

from loreloop.protocol.errors import BadRequest
from loreloop.protocol.images import FixedGrid, SmartGrid

MOST_ELONGATED = 200  # times as long as wide: resizing could otherwise make a small image huge


@dataclass(frozen=True)
class Cut:
    """An image is resized to `width` × `height`, then cut; `rows` × `columns` of tokens where they form a grid."""

    width: int
    height: int
    n_tokens: int
    rows: int = 1
    columns: int = 1


def cut_of(grid: SmartGrid | FixedGrid, width: int, height: int) -> Cut:
    """BadRequest for an image that is too elongated."""
    if max(width, height) > MOST_ELONGATED * min(width, height):
        raise BadRequest(f"The image is {width} × {height}; its sides may differ {MOST_ELONGATED} times at most.")
    if isinstance(grid, FixedGrid):
        return Cut(*_scaled(grid, width, height), grid.n_tokens)
    rows, columns = (side // grid.token_pixels for side in _smart(grid, height, width))
    return Cut(columns * grid.token_pixels, rows * grid.token_pixels, rows * columns, rows, columns)


def _scaled(grid: FixedGrid, width: int, height: int) -> tuple[int, int]:
    if grid.shorter_side is None:
        return grid.width, grid.height
    side = grid.shorter_side
    return (side, side * height // width) if width <= height else (side * width // height, side)


def _smart(grid: SmartGrid, *sides: int) -> list[int]:
    unit, area = grid.token_pixels, math.prod(sides)
    rounded = [round(side / unit) * unit for side in sides]
    if math.prod(rounded) > grid.max_pixels:
        shrink = math.sqrt(area / grid.max_pixels)
        return [max(unit, math.floor(side / shrink / unit) * unit) for side in sides]
    if math.prod(rounded) < grid.min_pixels:
        grow = math.sqrt(grid.min_pixels / area)
        return [math.ceil(side * grow / unit) * unit for side in sides]
    return rounded

"""4-bit weights as a GPU reads them, and products of many weights' rows in one launch (`int4_gpu_triton.py`).

A sheet is a block of 128 inputs of all outputs, 64 bytes an output, so that a tile of neighbouring outputs is one
stretch of memory. A 32-bit word holds one pair of neighbouring inputs from each of the block's four groups:

    word w of 16:  bits 4k … 4k + 3: input 32k + 2w  |  bits 16 + 4k …: input 32k + 2w + 1        k: group of the block

Masked, a word gives two codes that stand where the tensor cores want them. A weight is scale · (code - 8), or with
offsets scale · code + offset, rounded to bf16. Works where Triton is installed and there is a GPU, or in Triton's
interpreter (TRITON_INTERPRET=1), which takes tensors of a CPU.

Legend: O outputs, I inputs, G groups of inputs, S sheets, N rows of all weights, E weights of one shape.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

GROUP = 32  # inputs that share a scale
BLOCK = 4 * GROUP


@functools.cache
def _kernels() -> Any:
    """Imported when first used: Triton takes its time, and only a GPU has use for it."""
    return importlib.import_module("loreloop.kernels.int4_gpu_triton")


@functools.cache
def _triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def supports(device: torch.device) -> bool:
    """Whether these kernels run there."""
    # Triton's interpreter makes the same kernels testable on machines without a GPU.
    return (device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1") and _triton()


@dataclass(frozen=True)
class Int4GpuWeight:
    """A weight (O, I): codes (S, O, 64) uint8; scales and offsets (S, O, 4), bf16 or IEEE halves."""

    codes: Tensor
    scales: Tensor
    offsets: Tensor | None
    d_in: int

    @staticmethod
    def empty(shape: tuple[int, int], dtype: torch.dtype, device: torch.device, *, offsets: bool) -> Int4GpuWeight:
        """Zeros, also behind the last input, where they stay."""
        d_out, d_in = shape
        n_sheets = -(-d_in // BLOCK)
        # Zeros matter behind the last input: with a scale of zero a padded input adds exactly nothing.
        codes = torch.zeros(n_sheets, d_out, BLOCK // 2, dtype=torch.uint8, device=device)
        scales = torch.zeros(n_sheets, d_out, 4, dtype=dtype, device=device)
        return Int4GpuWeight(codes, scales, torch.zeros_like(scales) if offsets else None, d_in)

    @property
    def bits(self) -> int:
        """Always 4; the attribute that packed weights of a CPU have too."""
        return 4

    @property
    def d_out(self) -> int:
        """The number of outputs O; inputs are padded to whole blocks, outputs are not."""
        return self.codes.shape[1]

    def __getitem__(self, rows: slice | Tensor) -> Int4GpuWeight:
        """Some outputs: a view, or those of an index."""
        offsets = None if self.offsets is None else self.offsets[:, rows]
        return Int4GpuWeight(self.codes[:, rows], self.scales[:, rows], offsets, self.d_in)

    def fill(self, code_OI: Tensor, scale_OG: Tensor, offset_OG: Tensor | None) -> None:
        """Codes 0 … 15 in uint8."""
        pad = -self.d_in % BLOCK
        code_OI = F.pad(code_OI.to(self.codes.device), (0, pad))
        # Groups 0 and 2 of a block go into low halves of bytes, 1 and 3 into high ones; the permutation then puts the
        # bytes of one word side by side.
        low, high = code_OI.unflatten(1, (-1, 2, 2, GROUP // 2, 2)).unbind(3)  # output, sheet, half, word, input
        self.codes.copy_((low | high << 4).permute(1, 0, 3, 4, 2).flatten(2))
        for target, number_OG in ((self.scales, scale_OG), (self.offsets, offset_OG)):
            assert (target is None) == (number_OG is None)
            if target is not None and number_OG is not None:
                target.copy_(F.pad(number_OG, (0, pad // GROUP)).unflatten(1, (-1, 4)).transpose(0, 1))

    def plain(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Codes (O, I), scales and offsets (O, G)."""
        # The exact inverse of `fill`, axis by axis.
        byte = self.codes.unflatten(2, (GROUP // 2, 2, 2)).permute(1, 0, 4, 2, 3)  # output, sheet, half, word, input
        code_OI = torch.stack((byte & 15, byte >> 4), 3).flatten(1)[:, : self.d_in]
        offset_OG = None if self.offsets is None else self._groups(self.offsets)
        return code_OI, self._groups(self.scales), offset_OG

    def _groups(self, number_SO4: Tensor) -> Tensor:
        return number_SO4.transpose(0, 1).flatten(1)[:, : self.d_in // GROUP]


@dataclass(frozen=True)
class Tile:
    """What one program computes: outputs (back: inputs) by rows, and how."""

    d_out: int
    rows: int
    warps: int
    stages: int


# The tile for up to so many rows a weight; the tests and `bench/gpu.py` go through them all.
FORWARD = {12: Tile(128, 16, 4, 4), 24: Tile(128, 32, 4, 4), 96: Tile(128, 64, 4, 3), 1 << 62: Tile(256, 128, 8, 3)}
BACKWARD = {24: Tile(256, 16, 4, 3), 96: Tile(256, 64, 4, 3), 1 << 62: Tile(256, 128, 8, 3)}
SUMMED = 64  # outputs that a step back takes
EXACT_ROWS = 64  # where rows may not depend on each other, tiles may not depend on their number


class Int4GpuGroup:
    """Weights of one shape, wherever they lie, whose rows are multiplied together; `exact`: a row's result depends on
    that row alone."""

    def __init__(self, weights: Sequence[Int4GpuWeight], *, exact: bool = False) -> None:
        self.weights, self.exact = tuple(weights), exact
        self.first = weights[0]
        # A launch passes one shape and one dtype for all weights, so a stranger among them would be read wrongly
        # without any error.
        assert len({(weight.codes.shape, weight.d_in, weight.scales.dtype) for weight in weights}) == 1

    @functools.cached_property
    def _places_E3(self) -> Tensor:
        """Made when first used, for most weights are multiplied in a group, and never alone."""
        return torch.tensor([_places(weight, self.first) for weight in self.weights], device=self.first.codes.device)

    def product(self, x_NI: Tensor, starts_E1: Tensor, tile: Tile | None = None) -> Tensor:
        """x · Wᵀ, (N, O) bf16; rows starts[e] … starts[e + 1] meet weight e."""
        assert x_NI.dtype == torch.bfloat16
        y_NO = x_NI.new_empty(len(x_NI), self.first.d_out)
        tile = tile or self._tile(FORWARD, len(x_NI))
        whole = {"n_o": tile.d_out, "WHOLE": self.first.d_in % BLOCK == 0}
        self._launch(_kernels().forward, x_NI, y_NO, starts_E1, tile, whole)
        return y_NO

    def input_grad(self, dy_NO: Tensor, starts_E1: Tensor, tile: Tile | None = None) -> Tensor:
        """dy · W, (N, I) bf16."""
        assert dy_NO.dtype == torch.bfloat16
        dx_NI = dy_NO.new_empty(len(dy_NO), self.first.d_in)
        tile = tile or self._tile(BACKWARD, len(dy_NO))
        self._launch(_kernels().backward, dy_NO, dx_NI, starts_E1, tile, {"n_b": tile.d_out // BLOCK, "n_o": SUMMED})
        return dx_NI

    def _tile(self, tiles: dict[int, Tile], n_rows: int) -> Tile:
        # The tile decides the order of additions. With exact rows it must not follow the number of rows in a batch.
        rows = EXACT_ROWS if self.exact else n_rows / len(self.weights)
        return next(tile for most, tile in tiles.items() if rows <= most)

    def _launch(self, kernel: Any, x: Tensor, y: Tensor, starts_E1: Tensor, tile: Tile, shape: dict[str, int]) -> None:
        first, n_rows, n_weights = self.first, len(x), len(self.weights)
        if not n_rows:
            return
        # Programs know their weight by the row counts alone, so that the host need not; some may find that they are
        # too many.
        n_tiles = min(n_rows, n_rows // tile.rows + n_weights)
        words, scales = first.codes.view(torch.int32), first.scales.view(torch.int64)
        # A kernel needs some pointer there; compiled without OFFSETS it never reads it.
        offsets = scales if first.offsets is None else first.offsets.view(torch.int64)
        # Triton launches on the current device, which need not be the one that holds the tensors.
        with torch.cuda.device_of(x):
            kernel[(-(-y.shape[1] // tile.d_out), n_tiles)](
                x.contiguous(),
                y,
                starts_E1.int(),
                n_weights,
                words,
                scales,
                offsets,
                self._places_E3,
                first.d_out,
                first.d_in,
                n_e=_power_of_two(n_weights),
                n_r=tile.rows,
                OFFSETS=first.offsets is not None,
                HALF=first.scales.dtype == torch.float16,
                PLAIN=x.device.type == "cpu",
                num_warps=tile.warps,
                num_stages=tile.stages,
                enable_fp_fusion=False,  # products before a sum are exact
                **shape,
            )


def _places(weight: Int4GpuWeight, first: Int4GpuWeight) -> list[int]:
    """Where its codes, scales and offsets begin, in steps of a kernel's pointers from those of the first."""
    pairs = [(weight.codes, first.codes, 4), (weight.scales, first.scales, 8), (weight.offsets, first.offsets, 8)]
    places = []
    for own, other, step in pairs:
        assert (own is None) == (other is None)
        # Weights are allocated one by one. A launch takes one pointer, and reaches the others by their distance in
        # bytes.
        distance = 0 if own is None or other is None else own.data_ptr() - other.data_ptr()
        # The kernels promise the compiler this alignment, so that loads may be wide.
        assert distance % 16 == 0
        assert own is None or own.is_contiguous()
        places.append(distance // step)
    return places


def _power_of_two(number: int) -> int:
    return 1 << max(number - 1, 1).bit_length()

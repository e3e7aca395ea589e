"""Frozen weights of 4 or 8 bits that stay packed in memory, and how they come to be.

value = scale · code + offset, rounded to bf16: one scale (and offset, where a format has one) for 32 neighbouring
inputs of an output. Training and sampling read the same packed values. Codes lie in tiles
(`kernels/packed_products.py`), 4-bit ones of a GPU in the layout of `kernels/int4_gpu.py`. Knows no layers and no file
formats.

Legend: O outputs, I inputs, G groups of inputs, N rows of several weights, E weights, T rows (tokens).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from loreloop.kernels import int4_gpu
from loreloop.kernels import packed_products as kernels
from loreloop.kernels.int4_gpu import Int4GpuGroup, Int4GpuWeight
from loreloop.kernels.packed_products import GROUP, LANES, Codes
from loreloop.model.mx_weights import MxCodes

Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]
MOST_CODE = {4: 7, 8: 127}  # of symmetric codes
TILE = LANES  # outputs that lie together, between which a packed weight can be cut
ZERO_CODE = 8  # four bits are stored without a sign
CPU = torch.device("cpu")


def packable(shape: tuple[int, ...], starts: Sequence[int] = ()) -> bool:
    """Whether a weight of this shape, and its parts that begin at the rows `starts`, have whole tiles and groups."""
    return len(shape) == 2 and shape[1] % GROUP == 0 and all(row % LANES == 0 for row in (shape[0], *starts))


class PackedWeight:
    """A weight (O, I). Rows can be cut out in whole tiles of 16, and filled in, like those of a tensor."""

    def __init__(self, codes: Codes | Int4GpuWeight | MxCodes) -> None:
        self.codes = codes

    @staticmethod
    def empty(
        shape: tuple[int, ...], bits: int, dtype: torch.dtype, device: torch.device = CPU, *, offsets: bool = False
    ) -> PackedWeight:
        """Room for a weight; `dtype` is that of scales and offsets."""
        d_out, d_in = shape
        assert packable(shape), shape
        assert bits in (4, 8), bits
        if bits == 4 and int4_gpu.supports(device):
            return PackedWeight(Int4GpuWeight.empty((d_out, d_in), dtype, device, offsets=offsets))
        # Tiles come whole (`packable`), so no kernel has to look after an edge.
        n_tiles, n_groups = d_out // LANES, d_in // GROUP
        if bits == 4:
            codes = torch.zeros(n_tiles, d_in // 2, LANES, dtype=torch.uint8, device=device)
        else:
            codes = torch.zeros(n_tiles, d_in // 2, 2 * LANES, dtype=torch.int8, device=device)
        scales = torch.zeros(n_tiles, n_groups, LANES, dtype=dtype, device=device)
        return PackedWeight(Codes(codes, scales, torch.zeros_like(scales) if offsets else None))

    @property
    def shape(self) -> torch.Size:
        """(O, I), as that of the tensor it stands for."""
        return torch.Size((self.codes.d_out, self.codes.d_in))

    @property
    def n_bytes(self) -> int:
        """What it takes in memory, with scales and offsets."""
        parts = (self.codes.codes, self.codes.scales, self.codes.offsets)
        return sum(part.numel() * part.element_size() for part in parts if part is not None)

    def __getitem__(self, rows: slice) -> PackedWeight:
        """A view of whole tiles."""
        start, stop, step = rows.indices(self.codes.d_out)
        # Codes of 16 outputs lie interleaved, and a cut within them would not be a view.
        assert (step, start % LANES, stop % LANES) == (1, 0, 0), rows
        if not isinstance(self.codes, Codes):
            return PackedWeight(self.codes[rows])
        tiles = slice(start // LANES, stop // LANES)
        offsets = None if self.codes.offsets is None else self.codes.offsets[tiles]
        return PackedWeight(Codes(self.codes.codes[tiles], self.codes.scales[tiles], offsets))

    def copy_(self, weight_OI: Tensor) -> None:
        """Fills it with near values: symmetric codes, a group's largest value at the largest code."""
        assert self.codes.offsets is None
        assert not isinstance(self.codes, MxCodes), "such weights come packed"
        most = MOST_CODE[self.codes.bits]
        weight_OGI = weight_OI.to(self.codes.scales.device, torch.float32).unflatten(1, (-1, GROUP))
        # Rounded to its stored dtype before the codes are made: they must fit the scale that will multiply them, not an
        # exact one.
        scale_OG = (weight_OGI.abs().amax(-1) / most).to(self.codes.scales.dtype)
        # A group of zeros has a scale of zero, and 0 / 0 would make its codes NaN.
        divisor_OG1 = torch.where(scale_OG == 0, 1.0, scale_OG.float())[:, :, None]
        # There is one negative code more than positive ones, and after the scale was rounded a value may come out
        # there.
        code_OGI = (weight_OGI / divisor_OG1).round_().clamp_(-most - 1, most)
        if self.codes.bits == 4:
            code_OGI += ZERO_CODE
        self.fill(code_OGI.flatten(1).to(self.codes.codes.dtype), scale_OG, None)

    def fill(self, code_OI: Tensor, scale_OG: Tensor, offset_OG: Tensor | None) -> None:
        """Fills it with codes as they are: 0 … 15 in uint8, or int8."""
        assert (offset_OG is None) == (self.codes.offsets is None)
        assert not isinstance(self.codes, MxCodes), "its codes have values of their own"
        if isinstance(self.codes, Int4GpuWeight):
            self.codes.fill(code_OI, scale_OG, offset_OG)
            return
        # Pairs of inputs, tiles of 16 outputs and halves of tiles, in the order that packed_products.c describes.
        lanes = code_OI.unflatten(1, (-1, 2)).unflatten(0, (-1, 2, LANES // 2)).permute(0, 3, 1, 2, 4).flatten(3)
        low, high = lanes.unbind(2)  # the first and the last eight outputs of a tile
        self.codes.codes.copy_(low | high << 4 if self.codes.bits == 4 else torch.cat((low, high), -1))
        self.codes.scales.copy_(_tiled(scale_OG))
        if offset_OG is not None and self.codes.offsets is not None:
            self.codes.offsets.copy_(_tiled(offset_OG))

    def dense(self) -> Tensor:
        """(O, I) bf16."""
        if isinstance(self.codes, MxCodes):
            return self.codes.dense()
        if isinstance(self.codes, Codes) and self.codes.codes.is_cpu and kernels.supports(_A_ROW):
            return kernels.unpacked(self.codes)
        return self._dense_by_steps()

    def rows(self, index_N: Tensor) -> Tensor:
        """The weights of some outputs, (N, I) bf16."""
        flat_N = index_N.flatten()
        if not isinstance(self.codes, Codes):
            # Sheets keep an output's codes together in each block, so rows can be picked; tiles must be unpacked whole.
            row_NI = PackedWeight(self.codes[flat_N]).dense()
        else:
            tile_N, lane_N = flat_N // LANES, flat_N % LANES
            offsets = None if self.codes.offsets is None else self.codes.offsets[tile_N]
            tiles = PackedWeight(Codes(self.codes.codes[tile_N], self.codes.scales[tile_N], offsets))
            row_NI = tiles.dense()[torch.arange(len(flat_N), device=flat_N.device) * LANES + lane_N]
        return row_NI.unflatten(0, index_N.shape) if index_N.dim() != 1 else row_NI

    def share(self, outputs: Tensor | None, inputs: slice | None) -> PackedWeight | Tensor:
        """Some outputs and some inputs (None: all) as a weight of its own with the same values. Where they are no whole
        tiles and groups it is unpacked, in bf16."""
        d_out, d_in = self.shape
        index_O = torch.arange(d_out) if outputs is None else outputs
        start, stop, _ = (inputs or slice(None)).indices(d_in)
        if start % GROUP or not packable((len(index_O), stop - start)):
            return self.dense()[index_O, start:stop]
        groups = slice(start // GROUP, stop // GROUP)
        if isinstance(self.codes, MxCodes):
            codes, scales = self.codes.codes[index_O, start // 2 : stop // 2], self.codes.scales[index_O, groups]
            return PackedWeight(MxCodes(codes, scales))
        code_OI, scale_OG, offset_OG = _plain(self.codes) if isinstance(self.codes, Codes) else self.codes.plain()
        shape, has_offsets = (len(index_O), stop - start), offset_OG is not None
        # Codes and scales stay as they are: packing the values anew would round some of them a second time.
        mine = PackedWeight.empty(shape, self.codes.bits, scale_OG.dtype, scale_OG.device, offsets=has_offsets)
        offset_OG = None if offset_OG is None else offset_OG[index_O, groups]
        mine.fill(code_OI[index_O, start:stop], scale_OG[index_O, groups], offset_OG)
        return mine

    def _dense_by_steps(self) -> Tensor:
        """`dense`, plainly."""
        assert not isinstance(self.codes, MxCodes)
        code_OI, scale_OG, offset_OG = _plain(self.codes) if isinstance(self.codes, Codes) else self.codes.plain()
        value_OGI = code_OI.float().unflatten(1, (-1, GROUP))
        # Without offsets four-bit codes are symmetric around 8; eight-bit ones have a sign of their own.
        if offset_OG is None and self.codes.bits == 4:
            value_OGI -= ZERO_CODE
        # In fp32 and rounded once at the end, as the kernels do: both ways must give the same bits.
        value_OGI *= scale_OG.float()[:, :, None]
        if offset_OG is not None:
            value_OGI += offset_OG.float()[:, :, None]
        return value_OGI.flatten(1).to(torch.bfloat16)

    def product(
        self, bias_O: Tensor | None, plain: Linear = F.linear, alone: PackedGroup | None = None
    ) -> Callable[[Tensor], Tensor]:
        """(T, I) → (T, O): x · Wᵀ + bias. With a CPU's kernels a row's result depends on that row alone; `alone` is the
        group of this weight by itself; without either `plain` multiplies with the unpacked weight."""

        def linear(x_TI: Tensor) -> Tensor:
            # Decided by the rows, not by the weight: tests and fp32 callers multiply the same weight in other dtypes.
            if alone is not None and alone.serves(x_TI):
                y_TO = alone.product(x_TI)
            elif isinstance(self.codes, Codes) and kernels.supports(x_TI):
                y_TO = kernels.product(x_TI, self.codes)
            else:
                y_TO = plain(x_TI, self.dense().to(x_TI), None)
            # The bias comes after the product was rounded on every processor, so that all round alike.
            return y_TO if bias_O is None else y_TO + bias_O

        return linear


class PackedGroup:
    """Weights of one shape that lie in sheets, as those of a layer's experts do: one product for the rows of all. With
    `exact` a row's result depends on that row alone."""

    def __init__(self, sheets_E: Sequence[Int4GpuWeight], *, exact: bool) -> None:
        self._group = Int4GpuGroup(sheets_E, exact=exact)

    @staticmethod
    def of(weights: Sequence[Tensor | PackedWeight], *, exact: bool) -> PackedGroup | None:
        """None: not all lie in sheets."""
        sheets_E = [w.codes for w in weights if isinstance(w, PackedWeight) and isinstance(w.codes, Int4GpuWeight)]
        return PackedGroup(sheets_E, exact=exact) if len(sheets_E) == len(weights) else None

    def serves(self, x: Tensor) -> bool:
        """Whether rows like these can be multiplied."""
        return x.dtype == torch.bfloat16 and int4_gpu.supports(x.device)

    def product(self, x_NI: Tensor, starts_E1: Tensor | None = None) -> Tensor:
        """(N, O): rows starts[e] … starts[e + 1] by weight e, transposed; None: all by the only weight."""
        return self._group.product(x_NI, _all_rows(x_NI) if starts_E1 is None else starts_E1)

    def input_grad(self, dy_NO: Tensor, starts_E1: Tensor | None = None) -> Tensor:
        """(N, I): rows starts[e] … starts[e + 1] by weight e."""
        return self._group.input_grad(dy_NO, _all_rows(dy_NO) if starts_E1 is None else starts_E1)


_A_ROW = torch.empty(0, dtype=torch.bfloat16)


def _all_rows(x: Tensor) -> Tensor:
    """0 and the number of rows, written by the device itself."""
    # A tensor made from a list would be copied from the host, which waits for the device.
    return torch.arange(2, device=x.device) * len(x)


def _plain(codes: Codes) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes (O, I), scales and offsets (O, G)."""
    halves = (codes.codes & 15, codes.codes >> 4) if codes.bits == 4 else codes.codes.chunk(2, -1)
    lanes = torch.stack([half.unflatten(2, (-1, 2)) for half in halves], 2)  # tile, pair, half, output, input
    code_OI = lanes.permute(0, 2, 3, 1, 4).flatten(0, 2).flatten(1)
    return code_OI, _rows(codes.scales), None if codes.offsets is None else _rows(codes.offsets)


def _tiled(x_OG: Tensor) -> Tensor:
    """(O, G) → (tiles, G, 16)."""
    return x_OG.unflatten(0, (-1, LANES)).transpose(1, 2)


def _rows(tiled: Tensor) -> Tensor:
    """(tiles, G, 16) → (O, G)."""
    return tiled.transpose(1, 2).flatten(0, 1)

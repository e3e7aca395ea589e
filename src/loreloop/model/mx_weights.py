"""Weights of MXFP4: floats of 4 bits (e2m1) with a power of two for 32 neighbouring inputs of an output.

value = code's value · 2^(scale − 127), which bf16 holds exactly (Open Compute Project, Microscaling Formats 1.0). Codes
stay as they are published and are unpacked for each product. Knows no layers and no files.

Legend: O outputs, I inputs, G groups of inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

GROUP, BIAS = 32, 127
_POSITIVE = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
VALUES = (*_POSITIVE, *(-value for value in _POSITIVE))  # of each code; the highest bit is the sign


@dataclass(frozen=True)
class MxCodes:
    """`codes` (O, I / 2) uint8, the even input in the low half; `scales` (O, G) uint8."""

    codes: Tensor
    scales: Tensor
    offsets: None = None  # as other formats have them
    bits: int = 4

    @staticmethod
    def empty(shape: tuple[int, int], device: torch.device) -> MxCodes:
        """Room for a weight (O, I)."""
        d_out, d_in = shape
        codes = torch.zeros(d_out, d_in // 2, dtype=torch.uint8, device=device)
        return MxCodes(codes, torch.zeros(d_out, d_in // GROUP, dtype=torch.uint8, device=device))

    @property
    def d_out(self) -> int:
        """O."""
        return self.codes.shape[0]

    @property
    def d_in(self) -> int:
        """I."""
        return 2 * self.codes.shape[1]

    def __getitem__(self, rows: slice | Tensor) -> MxCodes:
        """Some outputs; a view where `rows` is a slice."""
        return MxCodes(self.codes[rows], self.scales[rows])

    def fill(self, other: MxCodes) -> None:
        """Takes over another weight's numbers."""
        self.codes.copy_(other.codes)
        self.scales.copy_(other.scales)

    def dense(self) -> Tensor:
        """(O, I) bf16."""
        values = torch.tensor(VALUES, device=self.codes.device)
        codes_OI = torch.stack((self.codes & 15, self.codes >> 4), -1).flatten(1)
        value_OGI = values[codes_OI.int()].unflatten(1, (-1, GROUP))
        exponent_OG1 = self.scales.int()[:, :, None] - BIAS
        return torch.ldexp(value_OGI, exponent_OG1).flatten(1).to(torch.bfloat16)

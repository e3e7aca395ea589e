"""Rotary position embedding in the half-split form that Llama-like models use.

Angles come from a table in fp32 that grows by whole blocks, so that a position's angles are the same numbers in every
batch. Knows no layers.

Legend: T tokens, P positions of the table, N heads of any kind, H query heads, E head width, or that of its turned
part.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from loreloop.model.attention_spec import RopeSpec

BLOCK_POSITIONS = 1024


@dataclass(frozen=True)
class Rope:
    """cos and sin of every token's angles, (T, 1, E), fp32; the first half of each sin with its sign turned. Queries
    may grow with their position besides, by `growth_T11`."""

    cos_T1E: Tensor
    sin_T1E: Tensor
    growth_T11: Tensor | None = None

    @property
    def width(self) -> int:
        """How many of a head's numbers are turned, from the first on."""
        return self.cos_T1E.shape[-1]

    def rotate(self, x_TNE: Tensor) -> Tensor:
        """Queries or keys turned by their positions, in their own dtype."""
        if self.width < x_TNE.shape[-1]:
            # Of some families' heads only the beginning is turned, and of some layers' nothing.
            turned = self._turned(x_TNE[..., : self.width])
            return torch.cat((turned, x_TNE[..., self.width :]), -1) if self.width else x_TNE
        return self._turned(x_TNE)

    def grown(self, q_THE: Tensor) -> Tensor:
        """Queries as large as their position makes them."""
        return q_THE if self.growth_T11 is None else q_THE * self.growth_T11.to(q_THE.dtype)

    def still(self) -> Rope:
        """The same for layers that turn nothing."""
        return Rope(self.cos_T1E[..., :0], self.sin_T1E[..., :0], self.growth_T11)

    def _turned(self, x_TNE: Tensor) -> Tensor:
        x = x_TNE.float()
        across_TNE = x.roll(x.shape[-1] // 2, -1)
        return (x * self.cos_T1E).add_(across_TNE.mul_(self.sin_T1E)).to(x_TNE.dtype)


class RopeTable:
    """Angles by position, made on first use."""

    def __init__(self, spec: RopeSpec, d_head: int, device: torch.device) -> None:
        # Tables begin empty and grow: a window of a million positions would take memory that few requests use.
        self.inverse_frequencies_E = inverse_frequencies(spec, d_head)
        self.axes_E = frequency_axes(spec.sections, d_head).to(device) if spec.sections else None
        self.factor, self.device, self.spec = spec.attention_factor, device, spec
        self.cos_PE = torch.empty(0, d_head, device=device)
        self.sin_PE = torch.empty(0, d_head, device=device)

    def at(self, positions: Tensor) -> Rope:
        """Angles of positions (T,), or (T, 3) where time, row and column may differ."""
        # This waits for the device, but once a batch and not once a layer.
        last = int(positions.max()) if positions.numel() else 0
        while last >= self.cos_PE.shape[0]:
            self._grow()
        if positions.dim() == 1:
            cos_TE, sin_TE = (table_PE.index_select(0, positions) for table_PE in (self.cos_PE, self.sin_PE))
        else:
            assert self.axes_E is not None
            # Every frequency looks its angle up at the position of its own axis.
            of_axis_TE, numbers_E = positions[:, self.axes_E], torch.arange(len(self.axes_E), device=positions.device)
            cos_TE, sin_TE = self.cos_PE[of_axis_TE, numbers_E], self.sin_PE[of_axis_TE, numbers_E]
        return Rope(cos_TE[:, None], sin_TE[:, None], self._growth(positions))

    def _growth(self, positions: Tensor) -> Tensor | None:
        """1 + β · ln(1 + ⌊position / window⌋), as Llama 4 and Ministral 3 have it."""
        if not self.spec.query_growth:
            return None
        windows_T = torch.floor(positions / self.spec.original_context_window)
        return (1 + self.spec.query_growth * torch.log1p(windows_T))[:, None, None]

    def _grow(self) -> None:
        start = self.cos_PE.shape[0]
        # On the CPU in fp32, so that a device's own sine does not decide the angles.
        angles = torch.outer(torch.arange(start, start + BLOCK_POSITIONS).float(), self.inverse_frequencies_E)
        cos, sin = angles.cos() * self.factor, angles.sin() * self.factor
        # Both halves of a head turn by the same angles. Storing them twice makes rotation two products and a roll.
        self.cos_PE = torch.cat((self.cos_PE, torch.cat((cos, cos), dim=-1).to(self.device)))
        self.sin_PE = torch.cat((self.sin_PE, torch.cat((-sin, sin), dim=-1).to(self.device)))


def frequency_axes(sections: tuple[int, ...], d_head: int) -> Tensor:
    """Which axis each of the E numbers turns with: t h w t h w … as long as rows and columns have some left, then t."""
    axes = torch.zeros(d_head // 2, dtype=torch.int64)
    for axis in (1, 2):
        # The slices interleave rows and columns among the frequencies of time, as Qwen's models were trained.
        axes[axis : 3 * sections[axis] : 3] = axis
    return torch.cat((axes, axes))


def inverse_frequencies(spec: RopeSpec, d_head: int) -> Tensor:
    """θ^(-2i/E) for i in 0…E/2-1, (E/2,) fp32, with the family's scaling for longer windows."""
    plain = 1.0 / spec.theta ** (torch.arange(0, d_head, 2, dtype=torch.int64).float() / d_head)
    if spec.scaling == "none":
        return plain
    if spec.scaling == "linear":
        return plain / spec.factor
    if spec.scaling == "longrope":
        return plain / torch.tensor(spec.divisors)
    return _llama3(plain, spec) if spec.scaling == "llama3" else _yarn(plain, spec)


def _llama3(plain_E: Tensor, spec: RopeSpec) -> Tensor:
    """Long wavelengths are divided by `factor`, short ones kept, those between blended."""
    window = spec.original_context_window
    wavelength_E = 2 * math.pi / plain_E
    # The blend is linear in the number of turns within the original window, as Llama 3.1 publishes it.
    blend_E = (window / wavelength_E - spec.low_freq_factor) / (spec.high_freq_factor - spec.low_freq_factor)
    blend_E = blend_E.clamp(0.0, 1.0)
    return (1 - blend_E) * plain_E / spec.factor + blend_E * plain_E


def _yarn(plain_E: Tensor, spec: RopeSpec) -> Tensor:
    """Dimensions that turn often in the original window are kept, those that hardly turn divided by `factor`."""
    d_head = 2 * len(plain_E)

    def dimension(n_turns: float) -> float:
        """The one that turns so often in the original window."""
        window = spec.original_context_window / (n_turns * 2 * math.pi)
        return d_head * math.log(window) / (2 * math.log(spec.theta))

    first, last = dimension(spec.beta_fast), dimension(spec.beta_slow)
    # Most published models round outwards here; a few state that they do not.
    if spec.whole_dimensions:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, d_head - 1)
    # The small number keeps the ramp defined where both borders fall on one dimension, as reference code has it.
    width = last - first if last != first else 0.001
    stretched_E = ((torch.arange(len(plain_E)).float() - first) / width).clamp(0, 1)
    return plain_E / spec.factor * stretched_E + plain_E * (1 - stretched_E)

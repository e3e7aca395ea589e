"""A mesh as a user writes it, `tp=2,pp=2`, and whether a decoder can be cut by it.

Plain arithmetic over a spec; knows no processes and no tensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from loreloop.model.spec import DecoderSpec
from loreloop.protocol.errors import BadRequest

MOST_RANKS = 4096
Axis = Literal["pp", "ep", "tp"]
# The outermost first: ranks that say most to one another are neighbours, and stand on one host.
AXES: tuple[Axis, ...] = ("pp", "ep", "tp")
BUILT: tuple[Axis, ...] = ("tp",)


@dataclass(frozen=True)
class Mesh:
    """How many ranks share the heads and widths of every layer (`tp`), its routed experts (`ep`), and the layers
    (`pp`). One of one is a single process."""

    tp: int = 1
    ep: int = 1
    pp: int = 1

    @property
    def sizes(self) -> dict[Axis, int]:
        """Ranks along each axis, the outermost first."""
        return {"pp": self.pp, "ep": self.ep, "tp": self.tp}

    @property
    def n_ranks(self) -> int:
        """How many processes it takes."""
        return math.prod(self.sizes.values())

    def at(self, rank: int) -> dict[Axis, int]:
        """Where a rank stands along each axis."""
        found: dict[Axis, int] = {}
        for axis in reversed(AXES):
            rank, found[axis] = divmod(rank, self.sizes[axis])
        return found

    def __str__(self) -> str:
        return ",".join(f"{axis}={size}" for axis, size in self.sizes.items() if size > 1) or "tp=1"


def parse_mesh(text: str) -> Mesh:
    """`tp=2,pp=2` as a mesh. BadRequest for axes nobody knows, those that are named twice, and sizes that are none."""
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = part.strip().partition("=")
        if name not in BUILT or name in sizes:
            known = ", ".join(f"{axis}=N" for axis in BUILT)
            raise BadRequest(f"{part.strip()[:40]!r} is no axis of a mesh, or was named twice; a mesh is of {known}.")
        if not (size.isascii() and size.isdecimal() and 0 < int(size[:9]) <= MOST_RANKS and len(size) < 9):
            raise BadRequest(f"The axis {name} of a mesh has {size[:40]!r} ranks; it takes 1 to {MOST_RANKS}.")
        sizes[name] = int(size)
    mesh = Mesh(**sizes)
    if mesh.n_ranks > MOST_RANKS:
        raise BadRequest(f"The mesh {mesh} has {mesh.n_ranks} ranks; a mesh takes 1 to {MOST_RANKS}.")
    return mesh


def check_mesh(spec: DecoderSpec, mesh: Mesh) -> None:
    """BadRequest where the mesh does not divide the decoder, with the numbers and the nearest mesh that does."""
    if not (wrong := [why for axis in AXES for why in _undivided(spec, axis, mesh.sizes[axis])]):
        return
    fits = {axis: _largest(spec, axis, size) for axis, size in mesh.sizes.items()}
    nearest = replace(mesh, **fits)
    raise BadRequest(f"The mesh {mesh} does not divide this model: {'; '.join(wrong)}. The nearest is {nearest}.")


def _largest(spec: DecoderSpec, axis: Axis, most: int) -> int:
    return max(size for size in range(1, most + 1) if not [*_undivided(spec, axis, size)])


def _undivided(spec: DecoderSpec, axis: Axis, size: int) -> Iterator[str]:
    """What of a decoder cannot be shared by so many ranks of an axis, in words."""
    if axis == "tp":
        yield from _undivided_widths(spec, size)


def _undivided_widths(spec: DecoderSpec, tp: int) -> Iterator[str]:
    counts = {"heads": spec.n_heads, "numbers between gate and down": spec.d_ff}
    if spec.latent is None:
        counts["heads of keys"] = spec.n_kv_heads
    if spec.moe:
        counts |= {"numbers of an expert": spec.moe.d_expert, "numbers of the shared expert": spec.moe.d_shared}
    yield from (f"{n} {what} over {tp} ranks" for what, n in counts.items() if n % tp)
    if tp > 1 and spec.latent and spec.latent.q_rank is None:
        # They share a product with the latents, of which the one is cut and the other is not.
        yield "queries come straight from the hidden state, in one product with the latents"
    if tp > 1 and spec.qk_norm == "whole":
        # Each rank would norm its own heads, where the model norms all of them together.
        yield "queries and keys are normed over all heads together"

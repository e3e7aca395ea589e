"""A mesh as a user writes it, `tp=2,pp=2`, and whether a decoder can be cut by it.

Plain arithmetic over a spec; knows no processes and no tensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from loreloop.model.spec import DecoderSpec
from loreloop.protocol.errors import BadRequest

MOST_RANKS = 4096
Axis = Literal["pp", "ep", "tp"]
# The outermost first: ranks that say most to one another are neighbours, and stand on one host.
AXES: tuple[Axis, ...] = ("pp", "ep", "tp")
ROWS = "sp"  # another word for `tp`, of which it is a kind: a group is of one or of the other


@dataclass(frozen=True)
class Mesh:
    """How many ranks share the heads and widths of every layer (`tp`), its routed experts (`ep`), and the layers
    (`pp`). One of one is a single process. `cuts_rows`: the ranks of `tp` share the rows of training's residual stream
    too."""

    tp: int = 1
    ep: int = 1
    pp: int = 1
    cuts_rows: bool = False

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

    def lines(self, axis: Axis) -> list[list[int]]:
        """The ranks in groups that differ along an axis alone."""
        found: dict[tuple[int, ...], list[int]] = {}
        for rank in range(self.n_ranks):
            elsewhere = tuple(at for other, at in self.at(rank).items() if other != axis)
            found.setdefault(elsewhere, []).append(rank)
        return list(found.values())

    def __str__(self) -> str:
        names = {axis: "sp" if axis == "tp" and self.cuts_rows else axis for axis in AXES}
        return ",".join(f"{names[axis]}={size}" for axis, size in self.sizes.items() if size > 1) or "tp=1"


def parse_mesh(text: str) -> Mesh:
    """`tp=2,pp=2` as a mesh; `sp=2` is a `tp=2` that cuts rows as well. BadRequest for axes nobody knows, those named
    twice, and sizes that are none."""
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = part.strip().partition("=")
        if name not in (*AXES, ROWS) or name in sizes or {name, *sizes} >= {"tp", ROWS}:
            known = ", ".join(f"{axis}=N" for axis in (*AXES, ROWS))
            raise BadRequest(f"{part.strip()[:40]!r} is no axis of a mesh, or was named twice; a mesh is of {known}.")
        if not (size.isascii() and size.isdecimal() and 0 < int(size[:9]) <= MOST_RANKS and len(size) < 9):
            raise BadRequest(f"The axis {name} of a mesh has {size[:40]!r} ranks; it takes 1 to {MOST_RANKS}.")
        sizes[name] = int(size)
    n_ranks = sizes.pop(ROWS, 1)
    mesh = _mesh(sizes) if n_ranks == 1 else _mesh(sizes | {"tp": n_ranks}, cuts_rows=True)
    if mesh.n_ranks > MOST_RANKS:
        raise BadRequest(f"The mesh {mesh} has {mesh.n_ranks} ranks; a mesh takes 1 to {MOST_RANKS}.")
    return mesh


def _mesh(sizes: Mapping[str, int] | Mapping[Axis, int], *, cuts_rows: bool = False) -> Mesh:
    by_name = {str(axis): size for axis, size in sizes.items()}
    return Mesh(by_name.get("tp", 1), by_name.get("ep", 1), by_name.get("pp", 1), cuts_rows)


def check_mesh(spec: DecoderSpec, mesh: Mesh) -> None:
    """BadRequest where the mesh does not divide the decoder, with the numbers and the nearest mesh that does."""
    if not (wrong := [why for axis in AXES for why in _undivided(spec, axis, mesh.sizes[axis])]):
        return
    fits = {axis: _largest(spec, axis, size) for axis, size in mesh.sizes.items()}
    nearest = _mesh(fits, cuts_rows=mesh.cuts_rows)
    raise BadRequest(f"The mesh {mesh} does not divide this model: {'; '.join(wrong)}. The nearest is {nearest}.")


def _largest(spec: DecoderSpec, axis: Axis, most: int) -> int:
    return max(size for size in range(1, most + 1) if not [*_undivided(spec, axis, size)])


def _undivided(spec: DecoderSpec, axis: Axis, size: int) -> Iterator[str]:
    """What of a decoder cannot be shared by so many ranks of an axis, in words."""
    if axis == "tp":
        yield from _undivided_widths(spec, size)
    elif axis == "pp":
        if size > spec.n_layers:
            yield f"{spec.n_layers} layers over {size} stages"
    elif size > 1 and spec.moe is None:
        yield f"no routed experts, which {size} ranks could share"
    elif spec.moe and spec.moe.n_experts % size:
        yield f"{spec.moe.n_experts} routed experts over {size} ranks"


def _undivided_widths(spec: DecoderSpec, tp: int) -> Iterator[str]:
    counts = {"heads": spec.n_heads, "numbers between gate and down": spec.d_ff}
    if spec.moe:
        counts |= {"numbers of an expert": spec.moe.d_expert, "numbers of the shared expert": spec.moe.d_shared}
    yield from (f"{n} {what} over {tp} ranks" for what, n in counts.items() if n % tp)
    # Several ranks may hold one head of keys, if each head has as many.
    if spec.latent is None and spec.n_kv_heads % tp and tp % spec.n_kv_heads:
        yield f"{spec.n_kv_heads} heads of keys over {tp} ranks"
    if spec.vocab_size < tp:
        yield f"{spec.vocab_size} tokens over {tp} ranks"

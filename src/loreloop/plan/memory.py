"""What a rank of a layout must hold for a wish, by part, with what can only be guessed told apart from what is counted.

The counted parts are those of `parallel/footprint.py`. Full tuning is counted as an optimizer in fp32 on every weight
of the rank; no engine here does it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from loreloop.model.spec import DecoderSpec
from loreloop.parallel.footprint import STATE_BYTES, Footprint, Load, Packing, footprint, held_weights
from loreloop.parallel.mesh import Mesh
from loreloop.parallel.pipeline_cut import layer_cost, stage_layers
from loreloop.parallel.shares import share_of
from loreloop.plan.wish import Base, Wish

BUFFERS = 2e9  # bytes of a device's own libraries and of collectives; a guess
FRAGMENTS = 0.03  # of all else, lost between allocations; a guess
BAND = (-0.03, 0.08)  # between which the truth should lie, as shares of a total


@dataclass(frozen=True)
class Memory:
    """Bytes of the rank that holds most. `cache` is of one answer's context; `spare` is what is left for more of
    them."""

    rank: int
    parts: Footprint
    work: float  # what products need while they run; a guess: as much as the layer at work keeps
    buffers: float
    available: float

    @property
    def total(self) -> float:
        """With the cache of one answer."""
        return self.parts.total + self.work + self.buffers

    @property
    def spare(self) -> float:
        """Bytes left; below zero it does not fit."""
        return self.available - self.total

    def by_part(self) -> dict[str, float]:
        """Every part under its name."""
        return {**vars(self.parts), "work": self.work, "buffers": self.buffers}

    @property
    def running(self) -> int:
        """How many answers have room at once."""
        return 1 + int(max(self.spare, 0) // max(self.parts.cache, 1))


def memory_of(base: Base, wish: Wish, mesh: Mesh, available: float) -> Memory:
    """The memory of the fullest rank. BadRequest where the mesh does not divide the model."""
    return fullest(memories_of(base, wish, mesh, available))


def memories_of(
    base: Base, wish: Wish, mesh: Mesh, available: float, stages: Iterable[int] | None = None
) -> list[Memory]:
    """The memory of the fullest rank of each stage: the last of `tp`, which has what is left over of the vocabulary.
    All of `ep` hold as much. BadRequest as of `memory_of`."""
    stages = range(mesh.pp) if stages is None else stages
    ranks = (stage * mesh.tp * mesh.ep + mesh.tp - 1 for stage in stages)
    return [_rank(base, wish, mesh, rank, available) for rank in ranks]


def unlike_stages(spec: DecoderSpec, n_stages: int) -> list[int]:
    """The first of the stages that are alike: those amid the others whose layers cost as much. Later ones have no more
    micro-batches under way, and so hold no more; whoever compares hundreds of meshes need not look at them."""
    found: dict[tuple[object, ...], int] = {}
    for stage, layers in enumerate(stage_layers(spec, n_stages)):
        costs = tuple(layer_cost(spec, layer) for layer in layers)
        found.setdefault((stage == 0, stage == n_stages - 1, costs), stage)
    return sorted(found.values())


def fullest(memories: Iterable[Memory]) -> Memory:
    """The one that holds most."""
    return max(memories, key=lambda one: one.total)


def packing_of(base: Base, wish: Wish) -> Packing:
    """Which weights are packed. What is trained whole cannot be."""
    if wish.full or wish.precision == "bf16":
        return "none"
    if wish.precision == "int4":
        return "all"
    return "experts" if base.packed_experts else "none"


def _rank(base: Base, wish: Wish, mesh: Mesh, rank: int, available: float) -> Memory:
    n_batches = -(-wish.trained_rows // wish.rows)
    load = Load(
        lora=wish.lora,
        cached_tokens=wish.context,
        trained_rows=min(wish.rows, wish.trained_rows),
        packing=packing_of(base, wish),
        n_batches=n_batches,
        recomputed=not wish.kept,
    )
    parts = footprint(base.spec, base.names, mesh, rank, load)
    if wish.full:
        n_numbers = held_weights(share_of(base.spec, mesh, rank), base.names, "none").n_numbers
        # A master copy, two moments and a gradient of every weight, in fp32 (Micikevicius et al. 2018, 1710.03740).
        parts = replace(
            parts,
            adapter=STATE_BYTES * n_numbers,
            moments=2 * STATE_BYTES * n_numbers,
            gradient=STATE_BYTES * n_numbers,
        )
    return Memory(rank, parts, float(parts.layer), BUFFERS + FRAGMENTS * parts.total, available)

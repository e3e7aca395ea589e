"""Which layouts a group of devices allows, what each takes, which is best, and what would fit where none does.

One engine of the layout trains; where the group has room for more of them, the others draw (`--replicas`), and training
and drawing take turns, as on-policy learning has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from loreloop.parallel.mesh import Mesh, check_mesh
from loreloop.plan.devices import Device, Group
from loreloop.plan.memory import Memory, fullest, memories_of, memory_of
from loreloop.plan.rates import LIKELY, Rates
from loreloop.plan.times import Machine, Part
from loreloop.plan.wish import Base, Wish
from loreloop.protocol.errors import BadRequest

MOST_STAGES = 16
MOST_GROUP = 1024  # devices of the largest group that is looked at for a model that does not fit


@dataclass(frozen=True)
class Step:
    """Seconds of a whole step: answers drawn, a pass over them and the optimizer's step."""

    rollout: Part
    training: Part

    def seconds(self, rates: Rates) -> float:
        """Both by turns."""
        return self.rollout.seconds(rates) + self.training.seconds(rates)


@dataclass(frozen=True)
class Layout:
    """A mesh, so many engines of it, and what a step takes, if it fits."""

    mesh: Mesh
    n_engines: int
    memory: Memory
    step: Step | None = None

    @property
    def fits(self) -> bool:
        """Whether the fullest rank has room."""
        return self.memory.spare >= 0


@dataclass(frozen=True)
class Plan:
    """Layouts that fit, the best first; those that do not, the nearest to it first; and meshes that divide the model in
    no way, with the reason."""

    fitting: tuple[Layout, ...]
    too_large: tuple[Layout, ...]
    undivided: tuple[tuple[Mesh, str], ...]


def plan_of(base: Base, wish: Wish, group: Group, only: Mesh | None = None) -> Plan:
    """All layouts of a group, or the one of a mesh that was asked for."""
    fitting, too_large, undivided = list[Layout](), list[Layout](), list[tuple[Mesh, str]]()
    for mesh in [only] if only else meshes_of(group, has_experts=base.spec.moe is not None):
        try:
            check_mesh(base.spec, mesh)
        except BadRequest as error:
            undivided.append((mesh, error.message))
            continue
        layout = layout_of(base, wish, group, mesh)
        (fitting if layout.fits else too_large).append(layout)
    fitting.sort(key=lambda one: one.step.seconds(LIKELY) if one.step else 0.0)
    too_large.sort(key=lambda one: -one.memory.spare)
    return Plan(tuple(fitting), tuple(too_large), tuple(undivided))


def meshes_of(group: Group, *, has_experts: bool) -> Iterator[Mesh]:
    """Meshes of as many ranks as there are devices, or of a part of them. `tp` stays inside a node: its sums are too
    large for what lies between nodes."""
    for n_ranks in _divisors(group.n):
        for tp in _divisors(n_ranks):
            for ep in _divisors(n_ranks // tp) if has_experts else (1,):
                pp = n_ranks // tp // ep
                if tp > group.device.per_node or pp > MOST_STAGES:
                    continue
                # Cutting rows costs no more than not, and leaves memory.
                yield Mesh(tp, ep, pp, cuts_rows=tp > 1)


def layout_of(base: Base, wish: Wish, group: Group, mesh: Mesh) -> Layout:
    """What one mesh takes on a group."""
    memories, n_engines = memories_of(base, wish, mesh, group.device.n_bytes), group.n // mesh.n_ranks
    memory = fullest(memories)
    layout = Layout(mesh, n_engines, memory)
    if not layout.fits:
        return layout
    machines = [Machine(base.spec, mesh, group.device, each, memory.running) for each in memories]
    # A single engine draws as well; of several, all but the one that trains.
    n_samples = -(-wish.n_samples // max(1, n_engines - 1))
    rollout = _slowest(machine.rollout(wish, n_samples) for machine in machines)
    return replace(layout, step=Step(rollout, _slowest(machine.training(wish) for machine in machines)))


def _slowest(parts: Iterable[Part]) -> Part:
    """A pipeline is as fast as its slowest stage, which need not be the fullest one."""
    return max(parts, key=lambda part: part.seconds(LIKELY))


def smallest_group(base: Base, wish: Wish, device: Device) -> Layout | None:
    """The layout of the fewest devices of 1, 2, 4, 8 and so on, on which a wish fits; None where none of up to
    `MOST_GROUP` does."""
    whole = memory_of(base, wish, Mesh(), device.n_bytes).parts
    states = whole.adapter + whole.moments + whole.gradient if wish.full else 0
    n = 1
    while n <= MOST_GROUP:
        # Not even an even cut of all weights would fit before.
        enough = (whole.experts + whole.weights + states) / n <= device.n_bytes
        for mesh in _dividing(base, Group(device, n)) if enough else ():
            memory = memory_of(base, wish, mesh, device.n_bytes)
            if memory.spare >= 0:
                return Layout(mesh, 1, memory)
        n *= 2
    return None


def would_fit(base: Base, wish: Wish, group: Group) -> list[str]:
    """What would fit where nothing does, one change at a time, in words."""
    found = []
    for name, changes in _changes(wish):
        for change in changes:
            if any(_fits(base, change, group, mesh) for mesh in _dividing(base, group)):
                found.append(f"{name} {getattr(change, name.removeprefix('--'))}")
                break
    if larger := smallest_group(base, wish, group.device):
        found.append(f"--gpus {larger.mesh.n_ranks}x{group.device.name} ({larger.mesh})")
    return found


def _changes(wish: Wish) -> Iterator[tuple[str, list[Wish]]]:
    """Smaller wishes, the mildest first."""
    if not wish.full:
        ranks = [rank for rank in (16, 8, 4, 1) if rank < wish.rank]
        yield "--rank", [replace(wish, rank=rank) for rank in ranks]
        if wish.precision != "int4":
            yield "--precision", [replace(wish, precision="int4")]
    shorter = [wish.context // 2**halves for halves in range(1, 8) if wish.context // 2**halves > wish.response]
    yield "--context", [replace(wish, context=context) for context in shorter]
    yield "--rows", [replace(wish, rows=rows) for rows in (2048, 1024, 512) if rows < wish.rows]


def _fits(base: Base, wish: Wish, group: Group, mesh: Mesh) -> bool:
    return memory_of(base, wish, mesh, group.device.n_bytes).spare >= 0


def _dividing(base: Base, group: Group) -> Iterator[Mesh]:
    for mesh in meshes_of(group, has_experts=base.spec.moe is not None):
        # Fewer ranks than devices never need less of each.
        if mesh.n_ranks == group.n:
            try:
                check_mesh(base.spec, mesh)
            except BadRequest:
                continue
            yield mesh


def _divisors(n: int) -> list[int]:
    return [size for size in range(1, n + 1) if n % size == 0]

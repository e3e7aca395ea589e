"""Places for the processes of an engine in a Ray cluster: joining it, what is free there, and a group of actors.

Ray keeps the hosts, counts what they have, and starts processes on them; nothing else is asked of it. Knows no tensors
and no models.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

from loreloop.protocol.errors import BadRequest

NEEDS_RAY = 'Without the package ray there is no --ray. Install loreloop with its extra: pip install "loreloop[ray]".'
QUIET = {  # Ray's own: no reports to its makers, no warnings for users of our commands
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
}
NODE_ID = "ray.io/node-id"  # the label by which Ray knows a host


@dataclass(frozen=True)
class Seat:
    """What a rank takes of its host."""

    n_cpus: int
    n_gpus: int

    @property
    def bundle(self) -> dict[str, float]:
        """In Ray's words."""
        return {"CPU": float(self.n_cpus)} | ({"GPU": float(self.n_gpus)} if self.n_gpus else {})

    def __str__(self) -> str:
        return " and ".join(f"{n:g} {name}" for name, n in self.bundle.items())


@dataclass(frozen=True)
class Host:
    """A host of the cluster and what is free on it."""

    node_id: str
    address: str
    free: dict[str, float]

    def n_seats(self, seat: Seat) -> int:
        """How many ranks find room there."""
        return min(int(self.free.get(name, 0.0) // n) for name, n in seat.bundle.items())

    def __str__(self) -> str:
        return f"{self.address} has {self.free.get('CPU', 0):g} CPU and {self.free.get('GPU', 0):g} GPU"


def join(address: str) -> None:
    """Makes this process a driver of the cluster; whoever calls it has asked before whether the cluster answers."""
    os.environ.update(QUIET)
    import ray

    ray.init(address=address, log_to_driver=False, configure_logging=False, logging_level="ERROR")


def hosts() -> list[Host]:
    """Those of the cluster that are alive, this one first."""
    import ray
    from ray._private.state import available_resources_per_node

    mine, free = ray.get_runtime_context().get_node_id(), available_resources_per_node()
    found = [
        Host(node["NodeID"], node["NodeManagerAddress"], dict(free.get(node["NodeID"], {})))
        for node in ray.nodes()
        if node["Alive"]
    ]
    return sorted(found, key=lambda host: host.node_id != mine)


@dataclass(frozen=True)
class Group:
    """Seats that Ray keeps free for the ranks of one engine; the first is on this host."""

    placement: Any
    seat: Seat

    def started(self, kind: type, rank: int, environment: dict[str, str]) -> Any:
        """An actor of `kind` on a rank's seat; it ends with this process."""
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        options: dict[str, Any] = {
            "num_cpus": self.seat.n_cpus,
            "num_gpus": self.seat.n_gpus,
            "max_restarts": 0,
            "runtime_env": {"env_vars": QUIET | environment},
            "scheduling_strategy": PlacementGroupSchedulingStrategy(self.placement, rank),
        }
        return ray.remote(kind).options(**options).remote()

    def give_back(self) -> None:
        """The seats are free again, and what runs on them ends."""
        from ray.util import remove_placement_group

        remove_placement_group(self.placement)


def reserve(n_ranks: int, seat: Seat, seconds: float) -> Group | None:
    """Seats for so many ranks, near one another; None where there is no room for them within the time."""
    import ray
    from ray.util import placement_group

    mine = ray.get_runtime_context().get_node_id()
    # The first rank is a process of the server, and the server runs here.
    where = [{NODE_ID: mine}, *({} for _ in range(n_ranks - 1))]
    placement = placement_group([seat.bundle] * n_ranks, strategy="PACK", bundle_label_selector=where)
    group = Group(placement, seat)
    if placement.wait(seconds):
        return group
    group.give_back()
    return None

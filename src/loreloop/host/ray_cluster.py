"""Places for the processes of an engine in a Ray cluster: joining it, what is free there, and a group of actors.

Ray keeps the hosts, counts what they have, and starts processes on them; nothing else is asked of it. Knows no tensors
and no models.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from loreloop.host.interfaces import address_of

KNOCK_SECONDS, N_KNOCKS = 2.0, 3
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


def join(address: str, interface: str) -> None:
    """Makes this process a driver of the cluster; whoever calls it has asked before whether the cluster answers. Ray
    knows this host by the address of `interface`, where that is given."""
    own = {"_node_ip_address": address_of(interface)} if interface else {}
    os.environ.update(QUIET)
    import ray

    ray.init(address=address, log_to_driver=False, configure_logging=False, logging_level="ERROR", **own)


def joined() -> bool:
    """Whether this process is one already."""
    import ray

    return bool(ray.is_initialized())


def own_address() -> str:
    """This host's, as the cluster knows it."""
    return hosts()[0].address


def watch_head(lost: Callable[[str], None]) -> None:
    """Calls `lost` once when the cluster's head has not answered several times in a row."""
    import ray

    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    threading.Thread(target=_knock, args=(host, int(port), lost), name="head", daemon=True).start()


def _knock(host: str, port: int, lost: Callable[[str], None]) -> None:
    n_failed = 0
    while n_failed < N_KNOCKS:
        time.sleep(KNOCK_SECONDS)
        try:
            socket.create_connection((host.strip("[]"), port), timeout=KNOCK_SECONDS).close()
            n_failed = 0
        except OSError as error:
            n_failed, why = n_failed + 1, str(error)
    lost(f"{host}:{port} has not answered {N_KNOCKS} times ({why})")


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

"""The further processes of an engine that is cut over several hosts: actors of Ray, which end with the first process.

They meet at a store that the first process holds at its host's address, and a connection of each to the first shows
when one is lost (`host/lifeline.py`); then the engine ends, and the supervisor starts it again.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from loreloop.cli.ray_rank import Facts
    from loreloop.host.ray_cluster import Group, Seat
    from loreloop.host.server_plan import ServerPlan
    from loreloop.parallel.mesh import Mesh
    from loreloop.parallel.place import Place

LOG = logging.getLogger("loreloop.engine_process")
ROOM_SECONDS = 15.0  # for what an engine has left behind to be free again
MEET_SECONDS = 60.0


def leading_place_in_ray(plan: ServerPlan, base_model: str, mesh: Mesh) -> Place:
    """The first place of a mesh whose others are actors. UserError, at the server's first start, where the cluster
    cannot be joined or has no room; later on it is waited for."""
    import msgspec
    import ray
    from torch._C._distributed_c10d import TCPStore

    from loreloop.cli.ranks import Meeting, meet
    from loreloop.cli.ray_rank import Orders
    from loreloop.host.interfaces import interface_of
    from loreloop.host.lifeline import Lifelines

    group = _group(plan, base_model, mesh)
    mine, actors = _met(plan, base_model, mesh, group)
    interface = plan.config.engine.interface or interface_of(mine.address)
    lines = Lifelines(mine.address, secrets.token_hex(16))
    store = TCPStore(mine.address, 0, mesh.n_ranks, is_master=True, wait_for_workers=False)
    for actor in actors:
        orders = Orders(
            plan=msgspec.json.encode(plan),
            base_model=base_model,
            rank=actor.rank,
            lifeline=lines.address,
            store_port=store.port,
            interface=plan.config.engine.interface or interface_of(actor.facts.address),
        )
        running = actor.handle.run.remote(orders)
        threading.Thread(target=_end_with, args=(running, actor), daemon=True).start()
    lines.gather({actor.rank: str(actor) for actor in actors}, MEET_SECONDS, partial(_lost, {a.rank: a for a in actors}))
    return meet(mesh, 0, Meeting(store, interface))


@dataclass(frozen=True)
class Actor:
    rank: int
    handle: Any
    facts: Facts

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.facts.host} ({self.facts.address})"


def _group(plan: ServerPlan, base_model: str, mesh: Mesh) -> Group:
    from loreloop.cli.ray_probe import trouble_with
    from loreloop.host import ray_cluster

    address = plan.config.engine.ray
    if why := trouble_with(address):
        raise ValueError(why)
    ray_cluster.join(address)
    group = ray_cluster.reserve(mesh.n_ranks, ray_cluster.Seat(max(1, plan.config.engine.threads), 0), ROOM_SECONDS)
    assert group
    return group


def _met(plan, base_model, mesh, group):
    import ray
    import socket

    from loreloop.cli.ray_rank import RayRank, facts_of

    mark = plan.run_folder / f"mark-{secrets.token_hex(8)}"
    mark.touch()
    folder = plan.folders[base_model]
    handles = [group.started(RayRank, rank, {}) for rank in range(1, mesh.n_ranks)]
    mine = facts_of(folder, str(mark), ray.util.get_node_ip_address())
    found = ray.get([h.facts.remote(folder, str(mark)) for h in handles], timeout=MEET_SECONDS)
    mark.unlink()
    return mine, [Actor(i + 1, h, f) for i, (h, f) in enumerate(zip(handles, found))]


def _end_with(running, actor) -> None:
    import ray
    try:
        ray.get(running)
    except Exception as e:
        LOG.error("%s ended: %s", actor, e)
    os._exit(1)


def _lost(actors, rank, why) -> NoReturn:
    LOG.error("%s was lost: %s; the engine ends with it", actors[rank], why)
    os._exit(1)

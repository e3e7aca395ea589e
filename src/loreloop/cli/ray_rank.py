"""A further process of an engine as an actor of Ray, on whichever host Ray has put it."""

from __future__ import annotations

import logging
import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loreloop.host.lifeline import Address

LOG = logging.getLogger("loreloop.engine_process")


@dataclass(frozen=True)
class Facts:
    """What a process says of itself when ranks meet. `versions` and `fingerprint` are the same on all, or they do not
    work together; `sees_data` is whether the server's data folder lies on its host too."""

    host: str
    address: str
    versions: dict[str, str]
    fingerprint: str
    sees_data: bool


@dataclass(frozen=True)
class Orders:
    """What a rank is to do: `plan` is the server's, as it is written; `store_port` that of the first process's store."""

    plan: bytes
    base_model: str
    rank: int
    lifeline: Address
    store_port: int
    interface: str


class RayRank:
    """The actor. Ray runs its methods one after another, in its process's main thread."""

    def facts(self, folder: str, mark: str) -> Facts:
        """Of this process; `mark` is a file that the server has just written to its data folder."""
        import ray

        return facts_of(folder, mark, ray.util.get_node_ip_address())

    def run(self, orders: Orders) -> None:
        """Does what the first process does, until that ends, and this process with it."""
        import msgspec

        from loreloop.cli.engine_process import engine_of
        from loreloop.cli.ranks import Meeting, meet
        from loreloop.engine.leading import follow
        from loreloop.host.lifeline import hold
        from loreloop.host.log import speak_to
        from loreloop.host.server_plan import ServerPlan
        from loreloop.parallel.mesh import parse_mesh

        # First of all, so that whatever happens from here on is seen at the other end.
        connection = hold(orders.lifeline, orders.rank, _end)
        speak_to(connection.makefile("w", encoding="utf-8"), f"rank {orders.rank} on {socket.gethostname()}: ")
        plan = msgspec.json.decode(orders.plan, type=ServerPlan)
        mesh = parse_mesh(plan.config.engine.mesh)
        meeting = Meeting.over_network(orders.lifeline.host, orders.store_port, mesh.n_ranks, orders.interface)
        follow(engine_of(plan, orders.base_model, meet(mesh, orders.rank, meeting)))


def facts_of(folder: str, mark: str, address: str) -> Facts:
    """Of this process, at this address of its host. BadRequest where the checkpoint is not there."""
    import platform

    import torch

    from loreloop import __version__
    from loreloop.formats.fingerprint import fingerprint

    return Facts(
        host=socket.gethostname(),
        address=address,
        versions={"loreloop": __version__, "torch": torch.__version__, "Python": platform.python_version()},
        fingerprint=fingerprint(Path(folder)),
        sees_data=Path(mark).exists(),
    )


def _end(why: str) -> None:
    """Ends this process at once: whatever it does, nobody waits for it any more, and its memory is wanted."""
    print(f"the first process of the engine was lost: {why}", file=sys.stderr, flush=True)
    os._exit(1)

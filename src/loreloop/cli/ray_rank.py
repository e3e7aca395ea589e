"""A further process of an engine as an actor of Ray, on whichever host Ray has put it."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Sequence
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
    """What a rank is to do: `plan` is the server's, as it is written; at `store_port` is the first process's store."""

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
        from loreloop.host.ray_cluster import own_address

        return facts_of(folder, mark, own_address())

    def run(self, orders: Orders) -> None:
        """Does what the first process does, until that ends, and this process with it."""
        import msgspec

        from loreloop.cli.engine_process import engine_of
        from loreloop.cli.ranks import Meeting, meet
        from loreloop.engine.leading import follow
        from loreloop.host.interfaces import interface_of
        from loreloop.host.lifeline import hold
        from loreloop.host.log import speak_to
        from loreloop.host.ray_cluster import own_address
        from loreloop.host.server_plan import ServerPlan
        from loreloop.parallel.mesh import parse_mesh

        # First of all, so that whatever happens from here on is seen at the other end.
        connection = hold(orders.lifeline, orders.rank, _end)
        speak_to(connection.makefile("w", encoding="utf-8"), f"rank {orders.rank} on {socket.gethostname()}: ")
        plan = msgspec.json.decode(orders.plan, type=ServerPlan)
        mesh = parse_mesh(plan.config.engine.mesh)
        interface = orders.interface or interface_of(own_address())
        meeting = Meeting.over_network(orders.lifeline.host, orders.store_port, mesh.n_ranks, interface)
        follow(engine_of(plan, orders.base_model, meet(mesh, orders.rank, meeting)))


def facts_of(folder: str, mark: str, address: str) -> Facts:
    """Of this process, at this address of its host. BadRequest where the checkpoint is not there."""
    import platform

    import torch

    from loreloop import __version__
    from loreloop.formats.fingerprint import fingerprint
    from loreloop.kernels import isa

    level = isa.level()
    return Facts(
        host=socket.gethostname(),
        address=address,
        versions={
            "loreloop": __version__,
            "torch": torch.__version__,
            "Python": platform.python_version(),
            "instructions": f"{level.name if level else platform.machine()}{'+tiles' if isa.has_tiles() else ''}",
        },
        fingerprint=fingerprint(Path(folder)),
        sees_data=Path(mark).exists(),
    )


def check_alike(mine: Facts, others: Sequence[Facts], folder: str, run_folder: Path) -> None:
    """BadRequest where a host has other versions or another checkpoint than this one, or not the data folder."""
    from loreloop.protocol.errors import BadRequest

    for other in others:
        who = f"{other.host} ({other.address})"
        for what, here in mine.versions.items():
            # What ranks compute alike must come out alike, to the bit.
            if (there := other.versions.get(what)) != here:
                raise BadRequest(f"Hosts of one mesh must be alike: {who} has {what} {there}, and this host {here}.")
        if other.fingerprint != mine.fingerprint:
            raise BadRequest(
                f"{who} has another model in {folder} than this host: their fingerprints are {other.fingerprint} and "
                f"{mine.fingerprint}. Copy the folder there."
            )
        if not other.sees_data:
            raise BadRequest(
                f"{who} does not see the data folder {run_folder.parent}; checkpoints are read there by every rank. "
                "Put it on storage that all hosts share, at the same path."
            )


def _end(why: str) -> None:
    """Ends this process at once: whatever it does, nobody waits for it any more, and its memory is wanted."""
    print(f"the first process of the engine was lost: {why}", file=sys.stderr, flush=True)
    os._exit(1)

"""A further process of an engine as an actor of Ray, on whichever host Ray has put it."""

from __future__ import annotations

import os
import socket
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loreloop.cli.ray_facts import Facts, Orders, Question


class RayRank:
    """The actor. Ray runs its methods one after another, in its process's main thread."""

    def facts(self, asked: Question) -> Facts:
        """Of this process."""
        from loreloop.cli.ray_facts import facts_of
        from loreloop.host.ray_cluster import own_address

        return facts_of(asked, own_address())

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
        from loreloop.host.silence import tell_often
        from loreloop.parallel.mesh import parse_mesh

        # First of all, so that whatever happens from here on is seen at the other end.
        line = hold(orders.lifeline, orders.rank, _end)
        speak_to(line, f"rank {orders.rank} on {socket.gethostname()}: ")
        plan = msgspec.json.decode(orders.plan, type=ServerPlan)
        tell_often(plan.config.engine.silence_seconds, lambda activity: line.tell(str(activity)))
        mesh = parse_mesh(plan.config.engine.mesh)
        interface = orders.interface or interface_of(own_address())
        meeting = Meeting.over_network(orders.lifeline.host, orders.store_port, mesh.n_ranks, interface)
        place = meet(mesh, orders.rank, meeting)
        follow(engine_of(plan, orders.base_model, place, orders.replica))


def _end(why: str) -> None:
    """Ends this process at once: whatever it does, nobody waits for it any more, and its memory is wanted."""
    print(f"the first process of the engine was lost: {why}", file=sys.stderr, flush=True)
    os._exit(1)

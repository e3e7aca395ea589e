"""The further processes of an engine that is cut over several hosts: actors of Ray, which end with the first process.

They meet at a store that the first process holds at its host's address, and a connection of each to the first shows
when one is lost (`host/lifeline.py`); then the engine ends, and the supervisor starts it again.
"""

from __future__ import annotations

import importlib
import logging
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from torch._C._distributed_c10d import TCPStore

    from loreloop.cli.ray_facts import Facts
    from loreloop.host.ray_cluster import Group
    from loreloop.host.server_plan import ServerPlan
    from loreloop.parallel.mesh import Mesh
    from loreloop.parallel.place import Place

LOG = logging.getLogger("loreloop.engine_process")
MODULE = "loreloop.cli.ray_rank"  # by its name, as it imports what starts it
MEET_SECONDS = 60.0
RETRY_SECONDS = 1.0
SAID_EVERY_SECONDS = 30.0  # while the engine waits for its hosts
PASSED_ON = ("LORELOOP_ISA",)  # to the actors, besides what every engine gets


@dataclass(frozen=True)
class Actor:
    """One of the further ranks, before it has begun."""

    rank: int
    handle: Any
    facts: Facts

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.facts.host} ({self.facts.address})"


def first_place(plan: ServerPlan, plan_file: str, base_model: str, replica: int) -> Place:
    """The first place of the mesh that the settings ask for, on this host or on several; see `ranks.leading_place`."""
    from loreloop.cli.ranks import leading_place
    from loreloop.parallel.mesh import parse_mesh

    config = plan.config.engine
    if config.ray and (mesh := parse_mesh(config.mesh)).n_ranks > 1:
        return _leading_place(plan, base_model, mesh, replica)
    return leading_place(plan, plan_file, base_model, replica)


def _leading_place(plan: ServerPlan, base_model: str, mesh: Mesh, replica: int) -> Place:
    """The first place of a mesh whose others are actors. UserError, at the server's first start, where the cluster
    cannot be joined, has no room, or has hosts that differ; at later ones it is waited for."""
    from loreloop.protocol.errors import BadRequest

    # A group that has met before found room then: what is missing now was lost, and may come back.
    met_before = plan.run_folder / f"ray-{plan.nonce}-{replica}-{base_model.replace('/', '--')}"
    said_at = 0.0
    while True:
        try:
            mine, actors = _met(plan, base_model, mesh)
        except BadRequest as error:
            if not met_before.exists():
                raise
            if time.monotonic() - said_at > SAID_EVERY_SECONDS:
                LOG.warning("%s The engine waits until it can go on.", error.message)
                said_at = time.monotonic()
            time.sleep(RETRY_SECONDS)
            continue
        place = _begun(plan, base_model, replica, mine, actors)
        met_before.touch()
        return place


def _met(plan: ServerPlan, base_model: str, mesh: Mesh) -> tuple[Facts, list[Actor]]:
    """This process's facts, and actors on their seats, of which it is known that they can work together. BadRequest
    where they cannot."""
    from ray.exceptions import RayError

    from loreloop.cli.ray_facts import check_alike
    from loreloop.cli.ray_room import reserved
    from loreloop.protocol.errors import BadRequest

    group = reserved(plan, base_model, mesh)
    try:
        mine, actors = _asked(plan, base_model, mesh, group)
        check_alike(mine, [actor.facts for actor in actors], plan.folders[base_model], plan.run_folder)
    except RayError as error:
        group.give_back()
        why = str(error).strip().splitlines()[-1]
        raise BadRequest(f"A process of the mesh {mesh} did not start on a host of the Ray cluster: {why}") from None
    except BadRequest:
        group.give_back()
        raise
    return mine, actors


def _asked(plan: ServerPlan, base_model: str, mesh: Mesh, group: Group) -> tuple[Facts, list[Actor]]:
    """This process's facts, and the actors with theirs."""
    import ray

    from loreloop.cli.ray_facts import Question, facts_of
    from loreloop.cli.serve import engine_environment
    from loreloop.host.ray_cluster import own_address

    actor = importlib.import_module(MODULE).RayRank
    mark, settings = plan.run_folder / f"mark-{secrets.token_hex(8)}", plan.config.engine
    asked = Question(plan.folders[base_model], str(mark), settings.device, settings.precision)
    environment = engine_environment(plan.config) | {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    mark.touch()
    try:
        handles = [group.started(actor, rank, environment) for rank in range(1, mesh.n_ranks)]
        mine = facts_of(asked, own_address())
        facts = ray.get([handle.facts.remote(asked) for handle in handles], timeout=MEET_SECONDS)
    finally:
        mark.unlink()
    return mine, [Actor(rank, *found) for rank, found in enumerate(zip(handles, facts, strict=True), 1)]


def _begun(plan: ServerPlan, base_model: str, replica: int, mine: Facts, actors: Sequence[Actor]) -> Place:
    """Sends the ranks to work, and meets them."""
    import msgspec

    from loreloop.cli.ranks import Meeting, meet
    from loreloop.cli.ray_facts import Orders
    from loreloop.host.interfaces import interface_of
    from loreloop.host.lifeline import Lifelines
    from loreloop.host.ray_cluster import watch_head
    from loreloop.parallel.mesh import parse_mesh

    mesh = parse_mesh(plan.config.engine.mesh)
    lines = Lifelines(mine.address, secrets.token_hex(16))
    store = _store(mine.address, mesh.n_ranks)
    chosen = plan.config.engine.interface
    for actor in actors:
        orders = Orders(
            plan=msgspec.json.encode(plan),
            base_model=base_model,
            replica=replica,
            rank=actor.rank,
            lifeline=lines.address,
            store_port=store.port,
            interface=chosen,
        )
        running = actor.handle.run.remote(orders)
        threading.Thread(target=_end_with, args=(running, actor), daemon=True).start()
    lost = partial(_lost, {actor.rank: actor for actor in actors})
    lines.gather({actor.rank: str(actor) for actor in actors}, MEET_SECONDS, lost)
    watch_head(lambda why: _end(f"the head of the Ray cluster was lost: {why}"))
    LOG.info("the mesh %s has met: rank 0 on %s, %s", mesh, mine.host, ", ".join(map(str, actors)))
    return meet(mesh, 0, Meeting(store, chosen or interface_of(mine.address)))


def _store(address: str, n_ranks: int) -> TCPStore:
    """At this address alone; by itself the library would listen at all of the host's."""
    from torch._C._distributed_c10d import TCPStore

    listener = socket.create_server((address, 0))
    port = listener.getsockname()[1]
    return TCPStore(address, port, n_ranks, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())


def _end_with(running: Any, actor: Actor) -> None:
    """A rank that ends, for whatever reason, takes the engine with it."""
    import ray
    from ray.exceptions import RayError

    from loreloop.host.supervisor import CANNOT_START
    from loreloop.protocol.errors import UserError

    try:
        ray.get(running)
    except RayError as error:
        if isinstance(error, UserError):  # its settings or its files are wrong, and would be again
            LOG.error("%s: %s", actor, str(error).strip().splitlines()[-1])
            os._exit(CANNOT_START)
        _end(f"{actor} ended: {str(error).strip().splitlines()[-1]}")
    _end(f"{actor} ended")


def _lost(actors: Mapping[int, Actor], rank: int, why: str) -> None:
    _end(f"{actors[rank]} was lost: {why}")


def _end(why: str) -> NoReturn:
    """Ends the engine, which the supervisor starts again whole."""
    LOG.error("%s; the engine ends with it", why)
    sys.stderr.flush()
    os._exit(1)

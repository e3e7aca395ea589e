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
    from loreloop.host.silence import Afar
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


@dataclass(frozen=True)
class Met:
    """Seats, this process's facts, and actors on the seats, of which it is known that they can work together."""

    group: Group
    mine: Facts
    actors: Sequence[Actor]


def first_place(plan: ServerPlan, plan_file: str, base_model: str, replica: int, afar: Afar) -> Place:
    """The first place of the mesh that the settings ask for, on this host or on several; see `ranks.leading_place`.
    What ranks on several say of themselves is said to `afar`."""
    from loreloop.cli.ranks import leading_place
    from loreloop.parallel.mesh import parse_mesh

    config = plan.config.engine
    if config.ray and (mesh := parse_mesh(config.mesh)).n_ranks > 1:
        return _leading_place(plan, base_model, mesh, replica, afar)
    return leading_place(plan, plan_file, base_model, replica)


def _leading_place(plan: ServerPlan, base_model: str, mesh: Mesh, replica: int, afar: Afar) -> Place:
    """The first place of a mesh whose others are actors. UserError, at the server's first start, where the cluster
    cannot be joined, has no room, or has hosts that differ, and ServerError where a rank does not come; at later ones
    it is waited for."""
    from loreloop.cli.ranks import Meeting, meet
    from loreloop.host.interfaces import interface_of
    from loreloop.protocol.errors import BadRequest, ServerError

    # A group that has met before found room then: what is missing now was lost, and may come back.
    met_before = plan.run_folder / f"ray-{plan.nonce}-{replica}-{base_model.replace('/', '--')}"
    said_at = 0.0
    while True:
        try:
            met = _met(plan, base_model, mesh)
            store = _gathered(met, plan, base_model, replica, afar)
        except (BadRequest, ServerError) as error:
            if not met_before.exists():
                raise
            if time.monotonic() - said_at > SAID_EVERY_SECONDS:
                LOG.warning("%s The engine waits until it can go on.", error.message)
                said_at = time.monotonic()
            time.sleep(RETRY_SECONDS)
            continue
        LOG.info("the mesh %s has met: rank 0 on %s, %s", mesh, met.mine.host, ", ".join(map(str, met.actors)))
        place = meet(mesh, 0, Meeting(store, plan.config.engine.interface or interface_of(met.mine.address)))
        met_before.touch()
        return place


def _met(plan: ServerPlan, base_model: str, mesh: Mesh) -> Met:
    """Asks for seats, and starts actors on them. BadRequest where they cannot work together."""
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
    return Met(group, mine, actors)


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


def _gathered(met: Met, plan: ServerPlan, base_model: str, replica: int, afar: Afar) -> TCPStore:
    """Sends the ranks to work, and waits for a word of each; gives the store at which they meet. ServerError where one
    does not come; then the seats are given back, and this process may ask for others."""
    import msgspec

    from loreloop.cli.ray_facts import Orders
    from loreloop.host.lifeline import Lifelines
    from loreloop.host.ray_cluster import watch_head
    from loreloop.parallel.mesh import parse_mesh
    from loreloop.protocol.errors import ServerError

    mesh = parse_mesh(plan.config.engine.mesh)
    given_up = threading.Event()
    lines = Lifelines(met.mine.address, secrets.token_hex(16))
    store = _store(met.mine.address, mesh.n_ranks)
    for actor in met.actors:
        orders = Orders(
            plan=msgspec.json.encode(plan),
            base_model=base_model,
            replica=replica,
            rank=actor.rank,
            lifeline=lines.address,
            store_port=store.port,
            interface=plan.config.engine.interface,
        )
        running = actor.handle.run.remote(orders)
        threading.Thread(target=_end_with, args=(running, actor, given_up), daemon=True).start()
    lost = partial(_lost, {actor.rank: actor for actor in met.actors}, given_up)
    names = {actor.rank: str(actor) for actor in met.actors}
    try:
        lines.gather(names, MEET_SECONDS, lost, afar.say)
    except ServerError:
        given_up.set()  # those that had come end with their seats, and this process not with them
        met.group.give_back()
        raise
    afar.expect(names)
    watch_head(lambda why: _end(f"the head of the Ray cluster was lost: {why}"))
    return store


def _store(address: str, n_ranks: int) -> TCPStore:
    """At this address alone; by itself the library would listen at all of the host's."""
    from torch._C._distributed_c10d import TCPStore

    listener = socket.create_server((address, 0))
    port = listener.getsockname()[1]
    return TCPStore(address, port, n_ranks, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())


def _end_with(running: Any, actor: Actor, given_up: threading.Event) -> None:
    """A rank that ends, for whatever reason, takes the engine with it, unless it was given up before."""
    import ray
    from ray.exceptions import RayError

    from loreloop.host.supervisor import CANNOT_START
    from loreloop.protocol.errors import UserError

    try:
        ray.get(running)
    except RayError as error:
        if given_up.is_set():
            return
        if isinstance(error, UserError):  # its settings or its files are wrong, and would be again
            LOG.error("%s: %s", actor, str(error).strip().splitlines()[-1])
            os._exit(CANNOT_START)
        _end(f"{actor} ended: {str(error).strip().splitlines()[-1]}")
    _end(f"{actor} ended")


def _lost(actors: Mapping[int, Actor], given_up: threading.Event, rank: int, why: str) -> None:
    if not given_up.is_set():
        _end(f"{actors[rank]} was lost: {why}")


def _end(why: str) -> NoReturn:
    """Ends the engine, which the supervisor starts again whole."""
    LOG.error("%s; the engine ends with it", why)
    sys.stderr.flush()
    os._exit(1)

"""Room for a mesh in a Ray cluster: seats for its ranks, or what there is instead and which mesh would fit."""

from __future__ import annotations

import itertools
import os
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loreloop.host.ray_cluster import Group, Host, Seat
    from loreloop.host.server_plan import ServerPlan
    from loreloop.model.spec import DecoderSpec
    from loreloop.parallel.mesh import Mesh

ROOM_SECONDS = 10.0  # for what an engine has left behind to be free again
KNOCK_SECONDS = 3.0
JOIN_SECONDS = 60.0


def reserved(plan: ServerPlan, base_model: str, mesh: Mesh) -> Group:
    """Seats for the ranks of a mesh; this process becomes a driver of the cluster. BadRequest where it cannot be
    joined, or has no room."""
    from loreloop.formats.configuration import read_spec
    from loreloop.host import ray_cluster
    from loreloop.protocol.errors import BadRequest

    config = plan.config.engine
    join(config.ray, config.interface)
    seat = ray_cluster.Seat(config.threads, n_gpus=int(config.device == "cuda"))
    if group := ray_cluster.reserve(mesh.n_ranks, seat, ROOM_SECONDS):
        return group
    hosts = ray_cluster.hosts()
    fits = nearest(read_spec(Path(plan.folders[base_model])), config.mesh, n_seats(hosts, seat))
    raise BadRequest(
        f"The mesh {mesh} takes {mesh.n_ranks} places of {seat}, the first of them on this host. Free in the Ray "
        f"cluster: {'; '.join(map(str, hosts))}. "
        + (f"The nearest mesh with room is {fits}." if fits else "No mesh finds room there.")
    )


def join(address: str, interface: str) -> None:
    """BadRequest, within seconds, where the cluster does not answer or has no host here."""
    from loreloop.cli.ray_probe import trouble_with
    from loreloop.host import ray_cluster
    from loreloop.protocol.errors import BadRequest

    if ray_cluster.joined():
        return
    if why := _silence(address) or trouble_with(address, interface):
        raise BadRequest(
            f"The Ray cluster at {address} (--ray) cannot be joined from this host: {why}. It must run "
            "on this host too: `ray start --head` on one host, `ray start --address` on each other; see docs/ray.md."
        )
    # It answered a moment ago; should it be lost since, the library would wait without an end.
    overdue = threading.Timer(JOIN_SECONDS, os._exit, (1,))
    overdue.daemon = True
    overdue.start()
    ray_cluster.join(address, interface)
    overdue.cancel()


def _silence(address: str) -> str:
    """Why nobody answers at an address; empty where somebody does, or where it is no address in numbers."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        return "" if address == "auto" else "an address is written HOST:PORT"
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_SECONDS).close()
    except (OSError, OverflowError) as error:
        return f"nothing answers ({error})"
    return ""


def n_seats(hosts: list[Host], seat: Seat) -> int:
    """How many ranks find room; none where the first, which must be on this host, does not."""
    return sum(host.n_seats(seat) for host in hosts) if hosts and hosts[0].n_seats(seat) else 0


def nearest(spec: DecoderSpec, text: str, most: int) -> Mesh | None:
    """The largest mesh of at most so many ranks that divides the decoder, with the axes of `text` or fewer ranks along
    them; None where not even one finds room."""
    return max(_smaller(spec, text, most), key=lambda mesh: mesh.n_ranks, default=None)


def _smaller(spec: DecoderSpec, text: str, most: int) -> Iterator[Mesh]:
    from loreloop.parallel.mesh import check_mesh, parse_mesh
    from loreloop.protocol.errors import BadRequest

    axes = [(axis.strip(), int(size)) for axis, _, size in (part.partition("=") for part in text.split(","))]
    for sizes in itertools.product(*(range(1, min(size, most) + 1) for _, size in axes)):
        mesh = parse_mesh(",".join(f"{axis}={size}" for (axis, _), size in zip(axes, sizes, strict=True)))
        if mesh.n_ranks > most:
            continue
        try:
            check_mesh(spec, mesh)
        except BadRequest:
            continue
        yield mesh

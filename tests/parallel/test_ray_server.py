"""A server whose ranks are actors on the hosts of a Ray cluster: it gives what one process gives, outlives what is
lost, and refuses at start what cannot work."""

import importlib.util
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from loreloop.protocol.errors import ServerError
from tests.parallel.ray_nodes import Nodes, ray_nodes
from tests.parallel.test_mesh_server import server, service, trained

if importlib.util.find_spec("ray") is None:
    pytest.skip("NOTHING ABOUT HOSTS IS TESTED: the package ray is not installed", allow_module_level=True)

STEPS = 6


@pytest.fixture(scope="module")
def by_one(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    with server(tmp_path_factory.mktemp("one") / "data") as running:
        client = service(running).create_lora_training_client(base_model="tiny", rank=8, seed=1).result()
        return trained(client, STEPS)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """Hosts of one CPU each: every rank is on another."""
    with ray_nodes("1", "1") as running:
        yield running


def actors_of(address: str) -> list[psutil.Process]:
    """The processes of our ranks. Other clusters may run on this machine, so each is known by the one it belongs to."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if (process.info["cmdline"] or [""])[0].startswith("ray::RayRank"):
            parent = process.parent()
            if parent and any(address in word for word in parent.cmdline()):
                found.append(process)
    return found


def test_ranks_on_two_hosts_give_what_one_process_gives_and_outlive_a_lost_one(nodes, by_one, tmp_path: Path) -> None:
    with server(tmp_path / "data", "--mesh", "tp=2", "--ray", nodes.address) as running:
        client = service(running).create_lora_training_client(base_model="tiny", rank=8, seed=1).result()
        losses = trained(client, STEPS // 2)
        (actor,) = actors_of(nodes.address)
        os.kill(actor.pid, signal.SIGKILL)
        losses += trained(client, STEPS // 2)
    assert losses == pytest.approx(by_one, rel=1e-5)


def test_a_lost_host_is_replaced_by_another(by_one, tmp_path: Path) -> None:
    with ray_nodes("1", "1", "1") as own, server(tmp_path / "data", "--mesh", "tp=2", "--ray", own.address) as running:
        client = service(running).create_lora_training_client(base_model="tiny", rank=8, seed=1).result()
        losses = trained(client, 2)
        # Of the two hosts beside the first either may hold the other rank, so each dies once, and a third one comes.
        own.tell("kill 1")
        losses += trained(client, 2)
        own.tell("kill 2")
        own.tell("add 1")
        losses += trained(client, 2)
    assert losses == pytest.approx(by_one, rel=1e-5)


def test_a_mesh_without_room_is_refused_at_start(nodes, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ServerError), server(tmp_path / "data", "--mesh", "tp=4", "--ray", nodes.address):
        pass
    said = capfd.readouterr().err
    assert "The mesh tp=4 takes 4 places of 1 CPU" in said
    assert said.count("has 1 CPU and 0 GPU") == 2
    assert "The nearest mesh with room is tp=2." in said


def test_an_address_where_nobody_answers_is_refused_within_seconds(tmp_path: Path, capfd) -> None:
    began = time.monotonic()
    with pytest.raises(ServerError), server(tmp_path / "data", "--mesh", "tp=2", "--ray", "127.0.0.1:1"):
        pass
    assert (
        "The Ray cluster at 127.0.0.1:1 (--ray) cannot be joined from this host: nothing answers"
        in capfd.readouterr().err
    )
    assert time.monotonic() - began < 30

"""A server whose ranks are actors on the hosts of a Ray cluster: it gives what one process gives, outlives what is
lost, and refuses at start what cannot work."""

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file, save_file

from loreloop.cli.ray_room import n_seats, nearest
from loreloop.formats.configuration import read_spec
from loreloop.formats.fingerprint import fingerprint
from loreloop.host import children
from loreloop.host.lifeline import LOST_SECONDS
from loreloop.host.ray_cluster import Host, Seat
from tests.parallel.ray_nodes import ROOT, Nodes, ray_nodes
from tests.parallel.test_mesh_server import OPTIONS, server, service, trained
from tests.processes import words_of
from tests.tiny import make_tiny_model

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
            if parent and any(address in word for word in words_of(parent)):
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


@pytest.mark.slow
def test_a_rank_that_hangs_on_another_host_is_noticed(nodes, by_one, tmp_path: Path) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text("[engine]\nsilence_seconds = 10\n")
    options = "--mesh", "tp=2", "--ray", nodes.address, "--config", str(settings)
    with server(tmp_path / "data", *options) as running:
        client = service(running).create_lora_training_client(base_model="tiny", rank=8, seed=1).result()
        losses = trained(client, STEPS // 2)
        time.sleep(15)  # with nothing to do
        (actor,) = actors_of(nodes.address)
        os.kill(actor.pid, signal.SIGSTOP)
        losses += trained(client, STEPS // 2)
        log = (running.data / "loreloop.log").read_text()
    assert log.count("process 0 ends the engine: nothing has happened for 10 s amid") == 1
    assert "says nothing)" in log
    assert losses == pytest.approx(by_one, rel=1e-5)


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_lost_head_is_noticed_and_waited_for(tmp_path: Path) -> None:
    with ray_nodes("1", "1") as own, server(tmp_path / "data", "--mesh", "tp=2", "--ray", own.address) as running:
        client = service(running).create_lora_training_client(base_model="tiny", rank=8, seed=1).result()
        trained(client, 1)
        own.tell("kill 0")
        began, log = time.monotonic(), running.data / "loreloop.log"
        while "cannot be joined from this host" not in log.read_text():
            assert time.monotonic() - began < 120, log.read_text()[-3000:]
            time.sleep(0.1)
        assert "The engine waits until it can go on." in log.read_text()
        assert psutil.pid_exists(running.pid)


def refusal(folder: Path, *options: str) -> tuple[str, float]:
    """What a server that cannot start says, and after how many seconds it has ended."""
    (folder / "models").mkdir(parents=True, exist_ok=True)
    if not (folder / "models" / "tiny").exists():
        make_tiny_model(folder / "models" / "tiny", "qwen3", num_key_value_heads=4)
    command = children.python("loreloop.cli", "serve", "--data", str(folder), "--port", "0", *OPTIONS, *options)
    began = time.monotonic()
    ended = subprocess.run(command, env=children.environment(), capture_output=True, text=True, timeout=180)
    assert ended.returncode in (1, 2)
    return ended.stderr, time.monotonic() - began


def test_a_mesh_without_room_is_refused_with_what_is_free(nodes, tmp_path: Path) -> None:
    said, _ = refusal(tmp_path / "data", "--mesh", "tp=4", "--ray", nodes.address)
    assert "The mesh tp=4 takes 4 places of 1 CPU" in said
    assert said.count("has 1 CPU and 0 GPU") == 2
    assert "The nearest mesh with room is tp=2." in said
    assert "ray" not in said.replace("--ray", "").lower().replace("ray cluster", ""), "nothing of Ray's own words"


def test_an_address_where_nobody_answers_is_refused_within_seconds(tmp_path: Path) -> None:
    said, seconds = refusal(tmp_path / "data", "--mesh", "tp=2", "--ray", "127.0.0.1:1")
    assert "The Ray cluster at 127.0.0.1:1 (--ray) cannot be joined from this host: nothing answers" in said
    assert seconds < 60


@pytest.mark.slow
def test_somebody_who_is_no_cluster_is_refused_too(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        said, _ = refusal(tmp_path / "data", "--mesh", "tp=2", "--ray", f"127.0.0.1:{mute.getsockname()[1]}")
    assert "cannot be joined from this host: no answer within 15 s" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--ray", "127.0.0.1:1"), "--ray spreads the processes of a mesh over hosts; give --mesh too"),
        (("--mesh", "tp=2", "--ray", "127.0.0.1:1", "--threads", "0"), "--ray needs --threads: as many CPUs"),
        (("--mesh", "tp=2", "--ray", "nowhere"), "an address is written HOST:PORT"),
    ],
)
def test_what_does_not_go_together_is_refused(options, message: str, tmp_path: Path) -> None:
    assert message in refusal(tmp_path / "data", *options)[0]


def test_a_fine_tune_of_the_same_shape_has_another_fingerprint(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "a", "qwen3")
    before = fingerprint(folder)
    assert fingerprint(shutil.copytree(folder, tmp_path / "b")) == before
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor + 1e-3 for name, tensor in tensors.items()}, folder / "model.safetensors")
    assert fingerprint(folder) != before


def test_the_nearest_mesh_with_room_divides_the_model(tmp_path: Path) -> None:
    spec = read_spec(make_tiny_model(tmp_path / "model", "qwen3", num_key_value_heads=4))
    seat = Seat(2, n_gpus=1)
    hosts = [Host(str(n), f"10.0.0.{n}", {"CPU": 5.0, "GPU": gpus}) for n, gpus in enumerate((1.0, 2.0, 0.0))]
    assert n_seats(hosts, seat) == 3
    assert n_seats(hosts[::-1], seat) == 0, "the first rank is on this host"
    assert str(nearest(spec, "tp=4", 3)) == "tp=2"
    assert nearest(spec, "tp=4", 0) is None


@pytest.mark.slow
def test_a_cut_link_is_noticed_and_the_group_is_built_again(by_one, tmp_path: Path) -> None:
    """Nothing is closed when a link is cut, and an engine that has nothing to do sends nothing."""
    may = subprocess.run(["unshare", "-rn", "ip", "link", "add", "name", "x", "type", "veth"], capture_output=True)
    if may.returncode:
        pytest.skip(f"NO CUT LINK IS TESTED: network namespaces cannot be made here ({may.stderr.decode().strip()})")
    command = ["unshare", "-rn", "--kill-child", "--pid", "--fork", "--mount-proc", sys.executable]
    command += ["-m", "tests.parallel.cut_link", str(tmp_path / "data")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert ended.returncode == 0, ended.stderr[-5000:]
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["losses"] == pytest.approx(by_one, rel=1e-5)
    print(f"noticed after {found['seconds']:.1f} s")
    assert found["seconds"] <= LOST_SECONDS + 10  # and what a busy machine takes to say so

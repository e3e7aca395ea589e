"""A whole server on a tiny random model: its processes die and come back, or go together."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from loreloop.cli.server import RunningServer, running_server
from loreloop.config import Config
from loreloop.host.dispatcher import Dispatcher
from loreloop.host.job_desk import JobDesk
from loreloop.host.server_plan import NONCE, ServerPlan
from loreloop.host.web import run_web
from tests.processes import children_called
from tests.tiny import make_tiny_model

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    data = tmp_path_factory.mktemp("data")
    with free_port() as port:
        arguments = ["--model", str(model), "--threads", "1", "--port", str(port)]
    with running_server(str(data), arguments) as running:
        until(lambda: ask(running, "healthz"))
        complete(running, model)
        yield running


@contextmanager
def free_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def ask(server: RunningServer, path: str, body: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """The answer of one request, None where nobody answers."""
    request = urllib.request.Request(
        f"{server.url}/{path}",
        json.dumps(body).encode() if body else None,
        {"Authorization": f"Bearer {server.key}", "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return json.loads(reply.read())
    except (urllib.error.URLError, ConnectionError):
        return None


def complete(server: RunningServer, model: Path) -> str:
    body = {"model": str(model), "prompt": "what is it?", "max_tokens": 8, "seed": 1, "temperature": 1.0}
    answer = until(lambda: ask(server, "v1/completions", body))
    return str(answer["choices"][0]["text"])


def until(found: Callable[[], Any], seconds: float = 40) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := found():
            return value
        time.sleep(0.1)
    raise AssertionError("it did not happen in time")


def child(server: RunningServer, module: str) -> psutil.Process | None:
    return next(iter(children_called(server.pid, f"loreloop.cli.{module}")), None)


def killed(server: RunningServer, module: str) -> None:
    """Kills a process of the server and waits for the next one of its kind."""
    victim = child(server, module)
    assert victim is not None
    victim.send_signal(signal.SIGKILL)
    until(lambda: (process := child(server, module)) is not None and process.pid != victim.pid)


def test_a_killed_engine_comes_back_and_samples_the_same(server: RunningServer, model: Path) -> None:
    before = complete(server, model)
    killed(server, "engine_process")
    assert complete(server, model) == before


def test_a_killed_http_process_comes_back_at_the_same_place_with_its_keys(server: RunningServer, model: Path) -> None:
    before = complete(server, model)
    killed(server, "http_process")
    assert complete(server, model) == before


def begin(data: Path, model: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "loreloop.cli", "serve", "--data", str(data), "--port", "0", "--model", str(model)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def test_a_second_server_on_the_same_data_is_refused_and_leaves_the_first_alone(
    server: RunningServer, model: Path
) -> None:
    plan_file = server.data / "run" / "plan.json"
    before = plan_file.read_bytes()
    second = begin(server.data, model)
    _, errors = second.communicate(timeout=60)
    assert (second.returncode, errors.count("\n"), "A server is running on" in errors) == (1, 1, True), errors
    assert plan_file.read_bytes() == before, "the engines read it when they start again"


def test_of_two_that_start_at_the_same_moment_one_goes_on(model: Path, tmp_path: Path) -> None:
    started = [begin(tmp_path, model) for _ in range(2)]
    try:
        ended = until(lambda: next((each for each in started if each.poll() is not None), None))
        (other,) = (each for each in started if each is not ended)
        errors = ended.communicate()[1]
        assert (ended.returncode, errors.count("\n"), "A server is running on" in errors) == (1, 1, True), errors
        address = until(lambda: (file := tmp_path / "run" / "server.json").exists() and file.read_text())
        assert json.loads(address)["pid"] == other.pid
    finally:
        for each in started:
            each.terminate()
            each.wait(30)
    assert other.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_start_can_be_ended_while_the_engine_loads(model: Path, tmp_path: Path, number: signal.Signals) -> None:
    supervisor = begin(tmp_path, model)
    children = until(lambda: len(found := psutil.Process(supervisor.pid).children()) == 3 and found)
    supervisor.send_signal(number)
    _, errors = supervisor.communicate(timeout=10)
    assert (supervisor.returncode, "Traceback" in errors) == (0, False), errors
    assert all(map(has_ended, children))


@pytest.mark.timed
def test_an_idle_server_does_nothing(server: RunningServer, model: Path) -> None:
    complete(server, model)
    time.sleep(1)
    processes = [psutil.Process(server.pid), *psutil.Process(server.pid).children()]
    before = [sum(process.cpu_times()[:2]) for process in processes]
    time.sleep(5)
    after = [sum(process.cpu_times()[:2]) for process in processes]
    assert len(processes) == 4
    assert sum(after) - sum(before) <= 0.05  # one per cent of a core


@pytest.mark.timed
def test_an_idle_http_process_sleeps(server: RunningServer) -> None:
    process = child(server, "http_process")
    assert process is not None
    before = process.num_ctx_switches().voluntary
    time.sleep(3)
    assert process.num_ctx_switches().voluntary - before < 10


def has_ended(process: psutil.Process) -> bool:
    """Also where whoever has taken in the orphan has not fetched its exit code yet."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE or not process.is_running()
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_all_processes_end_with_the_supervisor(model: Path, tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "loreloop.cli", "serve", "--data", str(tmp_path), "--port", "0"]
    supervisor = subprocess.Popen([*command, "--model", str(model)], stdout=subprocess.DEVNULL, cwd=ROOT)
    until((tmp_path / "run" / "server.json").exists)
    children = psutil.Process(supervisor.pid).children()
    supervisor.send_signal(number)
    supervisor.wait(30)
    assert len(children) == 3
    until(lambda: all(map(has_ended, children)), seconds=5)
    assert number is signal.SIGKILL or not (tmp_path / "run" / "server.json").exists()


def test_the_settings_of_a_running_server_can_be_read(server: RunningServer) -> None:
    address = json.loads((server.data / "run" / "server.json").read_text())
    assert address == {"url": server.url, "pid": server.pid, "nonce": address["nonce"]}
    health = httpx.get(f"{server.url}/healthz")
    assert health.headers[NONCE] == address["nonce"] != ""
    assert until(lambda: ask(server, "healthz").get("precision"), seconds=30) in {"bf16", "fp32"}


def test_an_address_left_behind_is_not_taken_for_the_new_one(model: Path, tmp_path: Path) -> None:
    with free_port() as port:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "server.json").write_text(json.dumps({"url": f"http://127.0.0.1:{port}", "pid": 1}))
    with running_server(str(tmp_path), ["--model", str(model)]) as running:
        assert until(lambda: ask(running, "healthz"), seconds=0.5)["status"] == "ok"


def test_the_announced_address_can_be_connected_to(tmp_path: Path) -> None:
    async def serve(dispatcher: Dispatcher, desk: JobDesk, listening: socket.socket) -> None:
        assert listening.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)

    plan = ServerPlan(Config(data_dir=str(tmp_path), port=0), {})
    plan.write()
    asyncio.run(run_web(plan, serve))


def test_the_data_may_lie_deep_in_folders(tmp_path: Path) -> None:
    async def serve(dispatcher: Dispatcher, desk: JobDesk, listening: socket.socket) -> None:
        reached.append(True)

    reached: list[bool] = []
    plan = ServerPlan(Config(data_dir=str(tmp_path / ("deep" * 30)), port=0), {})
    plan.write()
    asyncio.run(run_web(plan, serve))
    assert reached


def test_a_taken_port_is_an_error_not_a_loop(model: Path, tmp_path: Path) -> None:
    with free_port() as port:
        command = [sys.executable, "-m", "loreloop.cli", "serve", "--data", str(tmp_path), "--port", str(port)]
        process = subprocess.Popen([*command, "--model", str(model)], stderr=subprocess.PIPE, cwd=ROOT)
        try:
            _, errors = process.communicate(timeout=8)
            assert process.returncode == 1
            assert b"Cannot listen" in errors
        finally:
            process.kill()
            process.wait()

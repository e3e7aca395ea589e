"""A stopped server's folder, one thing in it damaged, started again: it is refused once and with words, or serves
everything else and names what it does not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from loreloop.host import children
from loreloop.store import keys
from loreloop.store.store import open_database
from tests.http.site import PROTOBUF, new_model, passing, save, step
from tests.store.test_damage import DAMAGES, filled, overwritten

PROMPT = {"prompt": "the quick brown", "max_tokens": 4, "seed": 1}


@dataclass
class Scene:
    """A data folder as it was made, the key in it, and what was made with it."""

    data: Path
    pristine: Path
    model: Path
    secret: str
    run: str = ""

    def renew(self) -> None:
        shutil.rmtree(self.data)
        shutil.copytree(self.pristine, self.data)

    def start(self) -> subprocess.Popen[str]:
        arguments = ["--data", str(self.data), "--port", "0", "--model", str(self.model), "--threads", "1"]
        command = children.python("loreloop.cli", "serve", *arguments, "--parent-pid", str(os.getpid()))
        out, errors = subprocess.DEVNULL, subprocess.PIPE
        return subprocess.Popen(command, env=children.environment(), stdout=out, stderr=errors, text=True)

    @contextmanager
    def served(self, end: signal.Signals = signal.SIGTERM) -> Iterator[Client]:
        """A client of the running server; what the terminal showed is in its `shown` at the end."""
        process = self.start()
        client = Client(httpx.Client(headers={"x-api-key": self.secret}, timeout=60))
        try:
            client.http.base_url = self.address(process)
            yield client
        finally:
            process.send_signal(end)
            client.shown = process.communicate(timeout=30)[1]
            client.http.close()

    def address(self, process: subprocess.Popen[str]) -> str:
        file = self.data / "run" / "server.json"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            if file.exists() and (found := json.loads(file.read_text()))["pid"] == process.pid:
                return found["url"]
            time.sleep(0.05)
        raise AssertionError("it did not start")

    def refused(self) -> str:
        """What it says when it does not start."""
        process = self.start()
        try:
            _, errors = process.communicate(timeout=30)
        finally:
            process.kill()
        assert process.returncode == 1
        assert "Traceback" not in errors
        return errors


class Client:
    def __init__(self, http: httpx.Client) -> None:
        self.http, self.shown = http, ""

    def post(self, path: str, body: object, status: int = 200) -> dict[str, Any]:
        answer = self.http.post(path, json=body)
        assert answer.status_code == status, answer.text
        return answer.json()

    def result(self, path: str, body: object) -> dict[str, Any]:
        return self.wait(self.post(path, body)["request_id"]).json()

    def wait(self, request_id: str) -> httpx.Response:
        poll = {"request_id": request_id}
        while (answer := self.http.post("/api/v1/retrieve_future", json=poll)).status_code == 408:
            pass
        return answer

    def train(self, run: str, seq_id: int) -> httpx.Response:
        body = passing(run, seq_id).SerializeToString()
        answer = self.http.post("/api/v1/forward_backward", content=body, headers=PROTOBUF)
        return self.wait(answer.json()["request_id"]) if answer.status_code == 200 else answer


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Scene:
    """Two runs, one with checkpoints of both kinds and a deployment; the server has ended in order."""
    data = tmp_path_factory.mktemp("damaged") / "data"
    database = open_database(data)
    with database.begin() as connection:
        secret = keys.create(connection, "test", ("admin",), time.time()).secret
    database.dispose()
    scene = Scene(data, data.with_name("pristine"), tiny_folder, secret)
    with scene.served() as client:
        session = client.post("/api/v1/create_session", {"tags": [], "type": "create_session"})["session_id"]
        for number in range(2):
            body = new_model(session, number, base_model=str(tiny_folder))
            scene.run = run = client.result("/api/v1/create_model", body)["model_id"]
            assert client.train(run, 1).status_code == 200
            client.result("/api/v1/optim_step", step(run, 2))
            client.result("/api/v1/save_weights", save(run, 3, "kept"))
            client.result("/api/v1/save_weights_for_sampler", save(run, 4, "good"))
            client.result("/api/v1/save_weights_for_sampler", save(run, 5, "bad"))
        target = {"target": f"tinker://{run}/sampler_weights/bad"}
        assert client.http.put("/loop/v1/deployments/bot", json=target).status_code == 200
    assert not client.shown, "nothing is told of a good folder"
    shutil.copytree(scene.data, scene.pristine, ignore=shutil.ignore_patterns("*.sock"))
    return scene


@pytest.fixture
def scene(made: Scene) -> Scene:
    made.renew()
    return made


def folder_of(scene: Scene, kind: str, name: str) -> Path:
    return scene.data / "checkpoints" / scene.run.replace(":", "_") / kind / name


flipped = overwritten(4000, b"\x55\xaa")


def test_a_damaged_database_ends_a_start_with_one_line(tmp_path: Path) -> None:
    filled(tmp_path)
    (tmp_path / "loreloop.db").write_bytes(os.urandom(1 << 16))
    said = Scene(tmp_path, tmp_path, tmp_path, "").refused()
    assert len(said.splitlines()) == 1
    assert f"Error: The database {tmp_path / 'loreloop.db'} cannot be used" in said


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_server_does_not_start_on_a_damaged_database_and_says_so_once(scene: Scene, damage: str) -> None:
    DAMAGES[damage](scene.data / "loreloop.db")
    said = scene.refused()
    assert said.count("loreloop.db ") == 1
    assert "backup" in said


@pytest.mark.slow
def test_a_server_does_not_start_on_a_database_of_a_newer_version(scene: Scene) -> None:
    with sqlite3.connect(scene.data / "loreloop.db") as connection:
        connection.execute("INSERT INTO migrations VALUES (1000)")
    connection.close()
    assert "newer version" in scene.refused()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "damage"),
    {
        "journal/secret": lambda file: os.truncate(file, 5),
        "opening.lock": lambda file: (file.unlink(), file.mkdir()),
        "run/lock": lambda file: (file.unlink(), file.mkdir()),
        "run": lambda folder: (shutil.rmtree(folder), folder.touch()),
        "journal": lambda folder: (shutil.rmtree(folder), folder.touch()),
    }.items(),
)
def test_a_server_does_not_start_where_something_else_is_in_its_way(
    scene: Scene, place: str, damage: Callable[[Path], None]
) -> None:
    damage(scene.data / place)
    assert str(scene.data / place) in scene.refused()


@pytest.mark.slow
def test_damaged_files_of_weights_are_refused_by_name_on_every_way_and_everything_else_is_served(scene: Scene) -> None:
    flipped(folder_of(scene, "sampler_weights", "bad") / "adapter_model.safetensors")
    flipped(folder_of(scene, "weights", "kept") / "optimizer.safetensors")
    other = scene.run.replace(":train:1", ":train:0")
    (snapshot,) = scene.data.glob(f"journal/snapshots/*/{scene.run.replace(':', '_')}.*")
    flipped(snapshot)
    shutil.rmtree(scene.data / "checkpoints" / other.replace(":", "_") / "sampler_weights" / "bad")
    with scene.served() as client:
        # samplers and deployments
        for model in (f"tinker://{scene.run}/sampler_weights/bad", "bot"):
            assert "bad/adapter_model.safetensors is damaged" in str(
                client.post("/v1/completions", PROMPT | {"model": model}, 400)
            )
        gone = client.post("/v1/completions", PROMPT | {"model": f"tinker://{other}/sampler_weights/bad"}, 410)
        assert "are gone" in str(gone)
        for run in (scene.run, other):
            client.post("/v1/completions", PROMPT | {"model": f"tinker://{run}/sampler_weights/good"})
        # loads
        session = client.post("/api/v1/create_session", {"tags": [], "type": "create_session"})["session_id"]
        load = {
            "session_id": session,
            "model_seq_id": 0,
            "path": f"tinker://{scene.run}/weights/kept",
            "type": "load_weights",
        }
        refused = client.post("/api/v1/load_weights", load | {"optimizer": True}, 410)
        assert "kept/optimizer.safetensors is damaged" in str(refused)
        assert "model_id" in client.result("/api/v1/load_weights", load | {"model_seq_id": 1, "optimizer": False})
        # live models
        lost = client.train(scene.run, 6)
        assert lost.status_code == 410 or lost.json()["category"] == "server"
        assert str(snapshot) in lost.text
        assert client.train(other, 6).headers["content-type"] == PROTOBUF["content-type"]
        runs = client.http.get("/api/v1/training_runs").json()["training_runs"]
        corrupted = {run["training_run_id"] for run in runs if run["corrupted"]}
    assert corrupted == {scene.run}
    assert str(snapshot) in client.shown
    assert "Traceback" not in client.shown


@pytest.mark.slow
def test_an_unreadable_operation_does_not_keep_an_engine_from_starting(scene: Scene) -> None:
    """The row of one that had arrived early and still waits for its predecessor."""
    with scene.served() as client:
        request_id = client.post("/api/v1/optim_step", step(scene.run, 7))["request_id"]
    with sqlite3.connect(scene.data / "loreloop.db") as connection:
        connection.execute("UPDATE ops SET location = CAST(X'7bff00' AS TEXT) WHERE request_id = ?", (request_id,))
    connection.close()
    with scene.served() as client:
        assert "damaged" in client.wait(request_id).json()["error"]
        assert client.train(scene.run, 6).headers["content-type"] == PROTOBUF["content-type"]
        assert client.train(scene.run, 8).headers["content-type"] == PROTOBUF["content-type"]


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["deleted", "cut", "flipped"])
def test_what_was_lost_with_the_log_of_the_database_is_told_in_the_log_and_the_terminal(
    scene: Scene, damage: str
) -> None:
    with scene.served(signal.SIGKILL) as client:
        for seq_id in range(6, 40):
            client.result("/api/v1/optim_step", step(scene.run, seq_id))
        client.result("/api/v1/save_weights", save(scene.run, 40, "late"))
    time.sleep(1)  # until the children have died with it
    log = scene.data / "loreloop.db-wal"
    half = log.stat().st_size // 2
    {
        "deleted": log.unlink,
        "cut": lambda: os.truncate(log, half),
        "flipped": lambda: overwritten(half, b"\xff" * 64)(log),
    }[damage]()
    with scene.served() as client:
        assert client.post("/v1/completions", PROMPT | {"model": str(scene.model)})
    for told in (client.shown, (scene.data / "loreloop.log").read_text()):
        assert f"operations that the database does not know, of {scene.run}" in told
        assert str(folder_of(scene, "weights", "late")) in told
        assert damage == "cut" or "loreloop.db-wal is" in told
    with scene.served() as client:
        pass
    assert "operations that the database does not know" not in client.shown

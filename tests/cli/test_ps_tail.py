"""`loreloop ps` and `loreloop tail` at a real server: who works with what, and what happens, a line each."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tinker
from click.testing import CliRunner

from loreloop.cli.main import cli
from loreloop.cli.ps import busy_with, process_rows
from loreloop.cli.server import RunningServer
from loreloop.cli.tables import harmless
from loreloop.protocol.errors import NotFound
from tests.sdk.clients import fit, trainer


@pytest.fixture
def trained(server: RunningServer) -> tinker.TrainingClient:
    client = trainer(server)
    fit(client, 2)
    return client


def told(server: RunningServer, *arguments: str) -> str:
    result = CliRunner().invoke(cli, [*arguments, "--data", str(server.data)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_processes_are_shown_with_what_they_hold_and_do(server: RunningServer, trained: tinker.TrainingClient) -> None:
    found = json.loads(told(server, "ps", "--json"))
    roles = {one["role"]: one for one in found["processes"]}
    assert roles["supervisor"]["pid"] == server.pid
    assert (roles["http"]["parent"], roles["engine"]["engine"]) == (server.pid, "tiny 0")
    assert roles["engine"]["resident_bytes"] > 50 << 20
    assert trained.model_id in [one["id"] for one in found["living"]["runs"]]
    table = told(server, "ps")
    assert trained.model_id in table
    (engine,) = [line for line in table.splitlines() if " tiny " in line and "MB" in line]
    assert engine.endswith("idle")


def test_the_last_things_of_a_run_are_told(server: RunningServer, trained: tinker.TrainingClient) -> None:
    lines = told(server, "tail", trained.model_id, "--no-follow", "--last", "100").splitlines()
    kinds = [line.split()[1] for line in lines]
    assert [kind for kind in kinds if kind in ("pass", "step")] == ["pass", "step"] * 2
    assert all("loss" in line for line in lines if line.split()[1] == "pass")
    assert all(trained.model_id in line for line in lines)
    (newest,) = told(server, "tail", "--no-follow", "--last", "1", "--json").splitlines()
    assert set(json.loads(newest)) == {"number", "at", "kind", "of", "text", "figures"}
    assert told(server, "tail", "--no-follow", "--last", "0") == ""


def test_it_follows_until_it_is_told_to_stop(server: RunningServer, trained: tinker.TrainingClient) -> None:
    command = [sys.executable, "-m", "loreloop.cli", "tail", f"tinker://{trained.model_id}", "--last", "0"]
    following = subprocess.Popen(
        [*command, "--data", str(server.data)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert following.stdout
    try:
        # It may begin behind this step or before it; one of the next is seen at any rate.
        for _ in range(60):
            fit(trained, 1)
            if line := _line_of(following):
                break
        assert trained.model_id in line
        following.send_signal(signal.SIGINT)
        _, said = following.communicate(timeout=60)
        assert (following.returncode, said.strip()) == (130, "Stopped.")
    finally:
        following.kill()
        following.wait()


def _line_of(process: subprocess.Popen[str]) -> str:
    """A line that is there within half a second, or nothing."""
    import select

    assert process.stdout
    ready, _, _ = select.select([process.stdout], [], [], 0.5)
    return process.stdout.readline() if ready else ""


def test_names_cannot_do_anything_to_a_terminal(server: RunningServer) -> None:
    name = "red\x1b[31m\u202eeulb"
    client = tinker.ServiceClient(base_url=server.url, api_key=server.key, display_name=name)
    try:
        trainer_of = client.create_lora_training_client("tiny", rank=8).result()
        table = told(server, "ps")
    finally:
        client.close("success").result()
    assert trainer_of.model_id in table
    assert "red\\x1b[31m\\u202eeulb" in table
    assert "\x1b" not in table
    assert harmless("schön 中\n") == "schön 中\\n"


ENGINE: dict[str, Any] = {
    "model": "tiny",
    "replica": 0,
    "up": True,
    "executing": [],
    "running_samples": 0,
    "waiting_samples": 0,
    "waiting_ops": 0,
}


def test_what_an_engine_has_in_hand_is_said_in_words() -> None:
    assert busy_with(ENGINE) == "idle"
    assert busy_with(ENGINE | {"up": False}) == "loading"
    executing = [
        {"kind": "optim_step", "run": "r", "operations": 1},
        {"kind": "save_state", "run": "q", "operations": 2},
    ]
    busy = busy_with(ENGINE | {"executing": executing, "running_samples": 3, "waiting_ops": 1})
    assert busy == "optim_step of r, save_state of q (2), 3 samples, 1 waiting operation"


def test_an_engine_without_a_process_is_down() -> None:
    found = {"engines": [ENGINE, ENGINE | {"replica": 1}], "processes": [], "samples": []}
    assert [(row["process"], row["busy_with"]) for row in process_rows(found)] == [("tiny", "down"), ("tiny 1", "down")]


def test_without_a_server_both_say_so(tmp_path: Path) -> None:
    for command in ("ps", "tail"):
        refused = CliRunner().invoke(cli, [command, "--data", str(tmp_path)])
        assert isinstance(refused.exception, NotFound)

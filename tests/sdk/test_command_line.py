"""Every command of the SDK's command line, as a process of its own, against a real server: what it prints is looked at.

`checkpoint push-hf` needs the hub itself, and is left out.
"""

import csv
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import tinker
from tinker.cli.__main__ import main_cli

from loreloop.cli.server import RunningServer
from tests.sdk.clients import fit, made_key, service

HOUR = "%Y-%m-%dT%H:00:00Z"


@dataclass(frozen=True)
class Said:
    """What a command printed, and how it ended."""

    code: int
    out: str
    error: str


@dataclass(frozen=True)
class Trained:
    """A run of one session with a training and a sampler checkpoint."""

    run: str
    session: str
    state: str
    sampler: str


class Shell:
    """A user's shell: the server's address and a key, and a home of its own, where credentials are kept."""

    def __init__(self, server: RunningServer, home: Path, key: str | None = None) -> None:
        own = {"TINKER_BASE_URL": server.url, "TINKER_TELEMETRY": "0", "HOME": str(home), "COLUMNS": "300"}
        self.environment = os.environ | own
        self.environment.pop("TINKER_API_KEY", None)
        # An empty key is none, and not a wrong one.
        if key != "":
            self.environment["TINKER_API_KEY"] = key or server.key

    def tinker(self, *words: str, said: str = "") -> Said:
        command = [sys.executable, "-W", "ignore", "-m", "tinker.cli", *words]
        done = subprocess.run(
            command, env=self.environment, input=said, capture_output=True, text=True, timeout=120, cwd=Path("/")
        )
        return Said(done.returncode, done.stdout, done.stderr)

    def ok(self, *words: str, said: str = "") -> str:
        ended = self.tinker(*words, said=said)
        assert ended.code == 0, ended
        return ended.out

    def read(self, *words: str) -> Any:
        return json.loads(self.ok("-f", "json", *words))


@pytest.fixture
def shell(server: RunningServer, tmp_path: Path) -> Shell:
    return Shell(server, tmp_path)


@pytest.fixture(scope="module")
def trained(server: RunningServer) -> Trained:
    client = service(server).create_lora_training_client("tiny", rank=8, seed=1, user_metadata={"who": "ann"}).result()
    fit(client, 1)
    state, sampler = client.save_state("a").result().path, client.save_weights_for_sampler("b").result().path
    return Trained(client.model_id, client.model_id.partition(":")[0], state, sampler)


TESTED = {
    ("auth", "login"),
    ("auth", "logout"),
    ("auth", "status"),
    ("auth", "whoami"),
    ("billing", "checkpoint-storage"),
    ("billing", "usage"),
    ("checkpoint", "delete"),
    ("checkpoint", "download"),  # in test_downloads.py
    ("checkpoint", "info"),
    ("checkpoint", "list"),
    ("checkpoint", "publish"),
    ("checkpoint", "push-hf"),
    ("checkpoint", "set-ttl"),
    ("checkpoint", "unpublish"),
    ("model", "list"),
    ("run", "info"),
    ("run", "list"),
    ("session", "export-trace"),
    ("version",),
}


def test_every_command_is_known() -> None:
    found = set[tuple[str, ...]]()
    for name in main_cli.list_commands(None):
        command = main_cli.get_command(None, name)
        verbs: Sequence[str] = list(getattr(command, "commands", {}))
        found |= {(name, verb) for verb in verbs} or {(name,)}
    assert found == TESTED


def test_the_version_is_told(shell: Shell) -> None:
    assert shell.ok("version") == f"tinker {tinker.__version__}\n"


def test_runs_are_listed_and_shown(shell: Shell, trained: Trained) -> None:
    table = shell.ok("run", "list", "--limit", "0", "--columns", "id,model,owner,lora,updated,status,checkpoint")
    (row,) = [line for line in table.splitlines() if trained.run in line]
    for part in ("tiny", "Rank 8", "OK", "weights/a"):
        assert part in row
    run = shell.read("run", "info", trained.run)
    assert (run["is_lora"], run["lora_rank"], run["corrupted"]) == (True, 8, False)
    assert run["last_checkpoint"]["tinker_path"] == trained.state
    assert run["last_sampler_checkpoint"]["tinker_path"] == trained.sampler
    assert run["user_metadata"] == {"who": "ann"}
    gone = shell.tinker("run", "info", "nobody")
    assert gone.code == 1
    assert "Resource not found" in gone.error
    assert "There is no training run 'nobody'" in gone.error


def test_checkpoints_are_listed_and_shown(shell: Shell, trained: Trained) -> None:
    listed = shell.read("checkpoint", "list", "--run-id", trained.run)
    assert listed["run_id"] == trained.run
    kinds = {one["tinker_path"]: one["checkpoint_type"] for one in listed["checkpoints"]}
    assert kinds == {trained.state: "training", trained.sampler: "sampler"}
    everywhere = shell.ok("checkpoint", "list", "--limit", "0")
    assert trained.state in everywhere
    assert trained.sampler in everywhere
    shown = shell.ok("checkpoint", "info", trained.sampler)
    for part in ("sampler", "Never", "Yes (Rank 8)", trained.run):
        assert part in shown
    missing = shell.tinker("checkpoint", "info", f"tinker://{trained.run}/weights/nothing")
    assert missing.code == 1
    assert "Checkpoint not found" in missing.error


def test_a_checkpoint_is_published_and_given_a_time_and_both_are_taken_back(
    shell: Shell, server: RunningServer, trained: Trained
) -> None:
    rest = tinker.RestClient(base_url=server.url, api_key=server.key)

    def one() -> tinker.types.Checkpoint:
        (found,) = [
            each
            for each in rest.list_checkpoints(trained.run).result().checkpoints
            if each.tinker_path == trained.state
        ]
        return found

    shell.ok("checkpoint", "publish", trained.state)
    assert one().public
    shell.ok("checkpoint", "unpublish", trained.state)
    assert not one().public
    shell.ok("checkpoint", "set-ttl", trained.state, "--ttl", "7200")
    expires = one().expires_at
    assert expires is not None
    assert abs(expires.timestamp() - time.time() - 7200) < 120
    shell.ok("checkpoint", "set-ttl", trained.state, "--remove")
    assert one().expires_at is None


def test_checkpoints_are_deleted_by_path_and_by_run(shell: Shell, server: RunningServer) -> None:
    client = service(server).create_lora_training_client("tiny", rank=8).result()
    paths = [client.save_state(name).result().path for name in ("a", "b")]
    kept = client.save_weights_for_sampler("c").result().path
    assert "cancelled" in shell.ok("checkpoint", "delete", paths[0], said="n\n")
    nothing = f"tinker://{client.model_id}/weights/nothing"
    told = shell.read("checkpoint", "delete", paths[0], nothing, "--yes")
    assert (told["deleted_count"], told["failed"][0]["tinker_path"]) == (1, nothing)
    of_run = ("checkpoint", "delete", "--run-id", client.model_id, "--yes")
    assert "Deleted 1 checkpoint" in shell.ok(*of_run, "--type", "weights", "--after", "2020-01-01")
    rest = tinker.RestClient(base_url=server.url, api_key=server.key)
    left = rest.list_checkpoints(client.model_id).result().checkpoints
    assert [one.tinker_path for one in left] == [kept]


def test_another_key_sees_and_changes_nothing(server: RunningServer, trained: Trained, tmp_path: Path) -> None:
    other = Shell(server, tmp_path, made_key(server))
    for words in (
        ("run", "info", trained.run),
        ("checkpoint", "publish", trained.state),
        ("session", "export-trace", trained.session),
    ):
        refused = other.tinker(*words)
        assert refused.code == 1, words
        assert "Resource not found" in refused.error, words
    told = other.read("checkpoint", "delete", trained.state, "--yes")
    assert told["deleted_count"] == 0


def test_a_session_s_timeline_is_saved(shell: Shell, trained: Trained, tmp_path: Path) -> None:
    file = tmp_path / "made" / "trace.pftrace"
    told = shell.read("session", "export-trace", trained.session, "--output", str(file))
    assert (told["destination"], told["file_size_bytes"]) == (str(file), file.stat().st_size)
    assert b"forward_backward" in file.read_bytes()
    assert shell.ok("session", "export-trace", trained.session, "--url-only").startswith("http://127.0.0.1:")


def test_models_are_listed_and_looked_for(shell: Shell) -> None:
    (model,) = [one for one in shell.read("model", "list", "TIN")["models"] if one["model_name"] == "tiny"]
    assert (model["trainable"], model["sampleable"]) == (True, True)
    assert shell.tinker("model", "list", "no-such-name").code == 1


def test_what_was_used_is_told(shell: Shell, trained: Trained) -> None:
    # Training is counted together with its results, so nothing has to be waited for.
    now = datetime.now(UTC)
    hours = ((now - timedelta(hours=1)).strftime(HOUR), (now + timedelta(hours=1)).strftime(HOUR))
    told = shell.read("billing", "usage", *hours)
    assert [row for row in told["data"] if row.get("session_id") == trained.session], told
    assert trained.session in told["sessions"]
    rows = list(csv.DictReader(io.StringIO(shell.ok("billing", "usage", *hours, "--csv", "-"))))
    assert trained.session in [row["session_id"] for row in rows]
    assert shell.read("billing", "checkpoint-storage")["data"]
    wrong = shell.tinker("billing", "usage", "2026-01-01T00:30:00Z", "2026-01-02T00:00:00Z")
    assert wrong.code == 1
    assert "Invalid request" in wrong.error


def test_a_key_is_taken_in_looked_at_and_given_up(server: RunningServer, tmp_path: Path) -> None:
    key = made_key(server)
    outside = Shell(server, tmp_path, "")
    none = outside.tinker("auth", "status")
    assert (none.code, none.out) == (1, "Credentials available: no\n")
    refused = outside.tinker("auth", "login", said="tml-of-nobody\n")
    assert refused.code == 1
    assert "not one of this server" in refused.error
    assert "Logged in as other" in outside.ok("auth", "login", said=f"{key}\n")
    assert outside.ok("auth", "status") == "Credentials available: yes\nTinker accessible: yes\n"
    # Without tokens (sdk_flags.pjwt_auth_enabled) a key says nothing of whose it is, and the command says why.
    unknown = outside.tinker("auth", "whoami")
    assert unknown.code == 1
    assert "whoami requires JWT auth" in unknown.error
    assert "Removed credential" in outside.ok("auth", "logout")

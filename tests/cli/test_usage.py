"""`loreloop keys usage`: what is counted stays, over a restart of the server and over its sudden death."""

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import httpx
from click.testing import CliRunner

from loreloop.cli.main import cli
from loreloop.cli.server import RunningServer, running_server
from loreloop.host.meter import FLUSH_SECONDS

ARGUMENTS = ["--model", "tiny", "--precision", "fp32", "--threads", "1"]


def used(data: Path) -> dict[str, Any]:
    """Of the one key that has been used."""
    result = CliRunner().invoke(cli, ["keys", "usage", "--data", str(data), "--json"])
    rows = [row for row in json.loads(result.stdout) if row["requests"]]
    assert len(rows) == 1
    return dict(rows[0])


def ask(server: RunningServer, key: str, n: int) -> None:
    body = {"model": "tiny", "prompt": "a b", "max_tokens": 3}
    with httpx.Client(base_url=server.url, headers={"x-api-key": key}, trust_env=False, timeout=60) as client:
        for _ in range(n):
            assert client.post("/v1/completions", json=body).status_code == 200


def test_counts_survive_a_restart_and_a_kill_takes_the_last_seconds_at_most(tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / "models" / "tiny")
    with running_server(str(tmp_path), ARGUMENTS) as server:
        key = server.key
        ask(server, key, 2)
    once = used(tmp_path)
    assert (once["requests"], once["prompt_tokens"] > 0) == (2, True)
    with running_server(str(tmp_path), ARGUMENTS) as server:
        ask(server, key, 1)
        deadline = time.monotonic() + 10 * FLUSH_SECONDS
        while used(tmp_path)["requests"] < 3 and time.monotonic() < deadline:
            time.sleep(0.2)
        ask(server, key, 1)  # may be lost
        os.kill(server.pid, signal.SIGKILL)
    with running_server(str(tmp_path), ARGUMENTS) as server:
        before = used(tmp_path)["requests"]
        assert 3 <= before <= 4
        ask(server, key, 1)
    after = used(tmp_path)
    assert after["requests"] == before + 1
    assert after["prompt_tokens"] * 2 == once["prompt_tokens"] * after["requests"]
    table = CliRunner().invoke(cli, ["keys", "usage", "--data", str(tmp_path)]).stdout
    assert table.splitlines()[0].split()[:3] == ["name", "id", "requests"]
    assert "just now" in table

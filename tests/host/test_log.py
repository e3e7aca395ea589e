"""The log: one file for all processes, told apart; the terminal sees warnings; secrets and prompts are not in it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from loreloop.cli.server import RunningServer
from loreloop.host.log import Log
from loreloop.protocol.errors import WrongSettings

CHILD = """
import logging, sys, warnings
from loreloop.host.log import speak_to_supervisor
speak_to_supervisor()
log = logging.getLogger("loreloop.child")
log.info("all is well")
logging.getLogger("library").info("chatter")
warnings.warn("be careful")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("it failed\\nover two lines")
sys.stderr.buffer.write(b"raw \\xff words\\n")
sys.stderr.write("\\x1enot a record")
"""


def followed(log: Log, program: str) -> None:
    child = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE)
    assert child.stderr
    log.follow("child", child.stderr)
    assert child.wait(30) == 0
    log.close()


def test_the_file_has_all_and_the_terminal_warnings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = Log(tmp_path / "deep" / "log")
    followed(log, CHILD)
    written = (tmp_path / "deep" / "log").read_text()
    assert "INFO    child: all is well" in written
    assert "ERROR   child: it failed\nover two lines\n    Traceback" in written
    assert "    ZeroDivisionError: division by zero" in written
    assert "WARNING child: raw \ufffd words" in written
    assert "chatter" not in written
    shown = capsys.readouterr().err
    assert "all is well" not in shown
    assert "Traceback" not in shown
    for words in ("loreloop child: it failed", "be careful", "raw \ufffd words", "not a record"):
        assert words in shown


def test_verbose_shows_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    followed(Log(tmp_path / "log", verbose=True), CHILD)
    assert "all is well" in capsys.readouterr().err


def test_a_process_that_says_much_is_not_held_up_by_a_gone_terminal(tmp_path: Path) -> None:
    """Nor by a file on a full disk; both are said once, where anybody can hear it."""
    program = f"""
import subprocess, sys, os
from pathlib import Path
from loreloop.host.log import Log
log = Log(Path({"/dev/full" if os.path.exists("/dev/full") else "log"!r}), verbose=True)
much = "import sys; [print('x' * 99, file=sys.stderr) for _ in range(5000)]"
child = subprocess.Popen([sys.executable, "-c", much], stderr=subprocess.PIPE)
log.follow("child", child.stderr)
print(child.wait(30), flush=True)
log.close()
"""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=write, timeout=60, check=False
    )
    os.close(write)
    assert done.stdout.strip() == b"0"


def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(WrongSettings, match="--log-file"):
        Log(tmp_path)


def test_what_a_server_makes_is_open_to_its_owner_alone(server: RunningServer) -> None:
    run = server.data / "run"
    sockets = [path for path in run.iterdir() if path.is_socket()]
    assert len(sockets) >= 1
    private = [run, *sockets, *server.data.glob("loreloop.*"), server.data / "journal" / "secret"]
    assert {path.name: path.stat().st_mode & 0o077 for path in private if path.stat().st_mode & 0o077} == {}


def test_the_log_of_a_server_has_requests_and_no_secrets(server: RunningServer) -> None:
    body = {"model": "tiny", "prompt": "a very secret prompt", "max_tokens": 2, "user": "somebody"}
    headers = {"authorization": f"Bearer {server.key}"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=60) as client:
        answered = client.post("/v1/completions?api_key=hidden", json=body)
        refused = client.get("/v1/models", headers={"authorization": "Bearer tml-wrong"})
        client.get("/nowhere%0aINFO%20forged")
    log, deadline = server.data / "loreloop.log", time.monotonic() + 10
    while "forged" not in (written := log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    lines = {line.rpartition("id=")[2]: line for line in written.splitlines()}
    line = lines[answered.headers["x-request-id"]]
    assert "INFO    http: POST /v1/completions 200 " in line
    assert " route=completions key=local " in line
    assert " 401 " in lines[refused.headers["x-request-id"]]
    assert "GET /nowhere\\nINFO forged 404" in written
    for secret in (server.key, "tml-wrong", "very secret", "hidden", "somebody"):
        assert secret not in written
    assert "supervisor: http started" in written

"""`loreloop chat` as a process: questions on its input, against a live server."""

import json
import os
import subprocess
import sys
from pathlib import Path

from loreloop.cli.chat import told
from loreloop.cli.server import RunningServer
from tests.cli.test_cli import loreloop


def talk(
    server: RunningServer, lines: list[str], *options: str, key: str | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loreloop.cli", "chat", "--max-tokens", "4", *options]
    environment = os.environ | {"TINKER_BASE_URL": server.url, "TINKER_API_KEY": key or server.key}
    return subprocess.run(
        command, input="\n".join(lines), env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_a_conversation_is_kept_and_saved(server: RunningServer, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    done = talk(server, ["/system be kind", "hello", "again", f"/save {file}", "/quit"])
    assert done.returncode == 0, done.stderr
    saved = json.loads(file.read_text())
    assert [m["role"] for m in saved["messages"]] == ["system", "user", "assistant", "user", "assistant"]
    assert saved["model"] == "tiny"


def test_a_wrong_model_is_said_and_the_talk_goes_on(server: RunningServer, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    done = talk(server, ["/model tinny", "hello", "/model tiny", "hello", f"/save {file}"])
    assert "Did you mean 'tiny'" in done.stderr
    assert len(json.loads(file.read_text())["messages"]) == 2


def test_a_wrong_key_or_server_is_said_plainly(server: RunningServer) -> None:
    refused = talk(server, [], key="tml-none")
    assert refused.returncode == 1
    assert "not one of this server" in refused.stderr
    nobody = talk(server, [], "--url", "http://127.0.0.1:9")
    assert "loreloop serve" in nobody.stderr


def test_what_stands_in_a_tools_way_is_said(server: RunningServer) -> None:
    adder = Path(__file__).parents[1] / "clients" / "adder.py"
    data = ("--data", str(server.data))
    assert loreloop("tools", "add", "adder", *data, "--", sys.executable, str(adder)).returncode == 0
    done = talk(server, ["hello"], "--tools", "adder")
    assert "exceeds the model's context window" in done.stderr  # the tiny model's is short
    unknown = talk(server, ["hello"], "--tools", "nobody")
    assert "no tool server 'nobody'" in unknown.stderr


def test_what_a_tool_does_fits_a_line() -> None:
    assert told({"type": "call", "name": "a__f", "arguments": '{"x":\n1}'}) == '[a__f {"x": 1}]'
    assert told({"type": "result", "name": "a__f", "output": "y" * 500}) == f"[a__f -> {'y' * 192}…]"

"""`loreloop chat` as a process: questions on its input, against a live server."""

import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from loreloop.cli.chat import activity_line
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
    assert done.returncode == 1  # one question was not answered


def test_a_model_that_is_not_there_ends_the_talk_before_it_begins(server: RunningServer) -> None:
    refused = talk(server, ["hello"], "--model", "tinny")
    assert refused.returncode == 1
    assert "Did you mean 'tiny'" in refused.stderr
    assert refused.stdout == ""


def test_a_wrong_key_or_server_is_said_plainly(server: RunningServer) -> None:
    refused = talk(server, [], key="tml-none")
    assert refused.returncode == 1
    assert "not one of this server" in refused.stderr
    nobody = talk(server, [], "--url", "http://127.0.0.1:9")
    assert "loreloop serve" in nobody.stderr


@pytest.mark.parametrize(
    "url", ["nonsense", "", "ftp://127.0.0.1", "http://", "http://[::1", "http://a b", "http://127.0.0.1:99999"]
)
def test_an_address_that_is_none_is_said_plainly(server: RunningServer, url: str) -> None:
    refused = talk(server, [], "--url", url)
    assert refused.returncode == 1
    assert "http://127.0.0.1:8000" in refused.stderr or "no server answers" in refused.stderr.lower()
    assert "Traceback" not in refused.stderr


def test_a_key_that_can_be_none_is_said_plainly(server: RunningServer) -> None:
    refused = talk(server, [], key="tml-é\n")
    assert "The key holds characters" in refused.stderr


def test_another_kind_of_server_is_said_plainly(server: RunningServer) -> None:
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<p>welcome</p>")

    page = HTTPServer(("127.0.0.1", 0), Page)
    Thread(target=page.handle_request, daemon=True).start()
    refused = talk(server, [], "--url", f"http://127.0.0.1:{page.server_port}")
    page.server_close()
    assert refused.returncode == 1
    assert "lists no models" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_key_that_sees_no_models_is_told_so(server: RunningServer) -> None:
    made = loreloop("keys", "create", "guest", "--scope", "infer:nobody", "--data", str(server.data))
    key = next(word for word in made.stdout.split() if word.startswith("tml-"))
    refused = talk(server, [], key=key)
    assert refused.returncode == 1
    assert "sees no models" in refused.stderr


@pytest.mark.parametrize("file", ["/no/such/dir/x", "~nobody-at-all/x", "a\0b", "."])
def test_a_file_that_cannot_be_written_loses_nothing(server: RunningServer, tmp_path: Path, file: str) -> None:
    good = tmp_path / "talk.json"
    done = talk(server, ["hello", f"/save {file}", f"/save {good}"])
    assert done.returncode == 0
    assert "Nothing was written" in done.stderr
    assert len(json.loads(good.read_text())["messages"]) == 2


def test_what_stands_in_a_tools_way_is_said(server: RunningServer) -> None:
    adder = Path(__file__).parents[1] / "clients" / "adder.py"
    data = ("--data", str(server.data))
    assert loreloop("tools", "add", "adder", *data, "--", sys.executable, str(adder)).returncode == 0
    done = talk(server, ["hello"], "--tools", "adder")
    assert "exceeds the model's context window" in done.stderr  # the tiny model's is short
    unknown = talk(server, ["hello"], "--tools", "nobody")
    assert "no tool server 'nobody'" in unknown.stderr


def test_what_a_tool_does_fits_a_line() -> None:
    assert activity_line({"type": "call", "name": "a__f", "arguments": '{"x":\n1}'}) == '[a__f {"x": 1}]'
    assert activity_line({"type": "result", "name": "a__f", "output": "y" * 500}) == f"[a__f -> {'y' * 192}…]"

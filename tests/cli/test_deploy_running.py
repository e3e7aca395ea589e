"""`loreloop deploy` beside a running server: the server makes the change, asked with a key that is soon gone."""

import json
import os
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from loreloop.cli.deploy import deploy
from loreloop.cli.keys import transaction
from loreloop.cli.operator import KEY_SECONDS, running_server_of
from loreloop.cli.server import RunningServer
from loreloop.cli.who import operator
from loreloop.protocol.errors import LoreloopError, Unavailable
from loreloop.store import keys
from loreloop.store.rows import KeyRow


def run(data: Path, *arguments: str) -> str:
    """What a verb prints; its error is raised."""
    ended = CliRunner().invoke(deploy, [*arguments, "--data", str(data)], catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    return ended.stdout


def keys_of(data: Path) -> list[KeyRow]:
    with transaction(str(data)) as connection:
        return keys.list_all(connection)


def ask(server: RunningServer, model: str, secret: str) -> int:
    body = {"model": model, "prompt": "a", "max_tokens": 1}
    headers = {"authorization": f"Bearer {secret}"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=60, trust_env=False) as client:
        return client.post("/v1/completions", json=body).status_code


@pytest.fixture
def foreign() -> Iterator[tuple[str, list[Any]]]:
    """Something else on a port, and the headers it was sent."""
    heard: list[Any] = []

    class Else(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append(dict(self.headers))
            self.send_response(200)
            self.end_headers()

        do_PUT = do_GET

        def log_message(self, *_: object) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Else)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{listening.server_port}", heard
    listening.shutdown()
    listening.server_close()


def test_the_server_changes_and_says_what_is_wrong(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # would not answer
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "")
    before = keys_of(server.data)
    for version in (1, 2):
        (row,) = json.loads(run(server.data, "set", "ours", "tiny", "--json"))
        assert (row["version"], row["target"], row["by"]) == (version, "tiny", operator())
    assert ask(server, "ours", server.key) == 200
    assert json.loads(run(server.data, "rollback", "ours", "--json"))[0]["version"] == 3
    with pytest.raises(LoreloopError, match="nowhere"):
        run(server.data, "set", "ours", "nowhere")
    assert keys_of(server.data) == before


def test_a_deleted_name_is_gone_for_its_keys_too(server: RunningServer) -> None:
    run(server.data, "set", "shop", "tiny")
    with transaction(str(server.data)) as connection:
        secret = keys.create(connection, "guest", ("infer:shop",), time.time()).secret
    assert ask(server, "shop", secret) == 200
    run(server.data, "delete", "shop")
    assert ask(server, "shop", server.key) == 404
    run(server.data, "set", "shop", "tiny")
    assert (ask(server, "shop", server.key), ask(server, "shop", secret)) == (200, 403)


def test_a_key_that_outlives_its_request_expires(server: RunningServer) -> None:
    known = {row.id for row in keys_of(server.data)}
    with running_server_of(str(server.data)) as client:
        (row,) = [row for row in keys_of(server.data) if row.id not in known]
        assert row.expires == row.created + KEY_SECONDS
        secret = client.headers["authorization"].removeprefix("Bearer ")
        with transaction(str(server.data)) as connection:
            assert keys.find(connection, secret, row.expires) is None
    assert {row.id for row in keys_of(server.data)} == known


def test_another_program_at_the_address_gets_no_key(tmp_path: Path, foreign: tuple[str, list[Any]]) -> None:
    url, heard = foreign
    (tmp_path / "run").mkdir()
    for nonce in ({"nonce": "ours"}, {}):
        (tmp_path / "run" / "server.json").write_text(json.dumps({"url": url, "pid": os.getpid()} | nonce))
        with pytest.raises(Unavailable, match="something else does"):
            run(tmp_path, "rollback", "bot")
    assert len(heard) == 2
    assert not [headers for headers in heard if "authorization" in {name.lower() for name in headers}]

"""The programs of docs/feedback.md as they stand there, beside a real server; JavaScript where there is node."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from loreloop.cli.server import RunningServer

PAGE = (Path(__file__).parents[2] / "docs/feedback.md").read_text()


def snippet(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.M | re.S)
    return str(found)


class Bot:
    """A deployment that records, on the server of the tests."""

    def __init__(self, server: RunningServer) -> None:
        headers = {"authorization": f"Bearer {server.key}"}
        self.client = httpx.Client(base_url=server.url, headers=headers, timeout=60, trust_env=False)
        self.send("PUT", "/loop/v1/deployments/snippets", {"target": "tiny", "record": True})

    def send(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        answer = self.client.request(method, path, json=body)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def ask(self) -> str:
        body = {"model": "snippets", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
        return str(self.send("POST", "/v1/chat/completions", body)["id"])

    def last(self) -> dict[str, Any]:
        return dict(self.send("GET", "/loop/v1/deployments/snippets/feedback")["feedback"][-1])


@pytest.fixture
def bot(server: RunningServer) -> Bot:
    return Bot(server)


def test_the_python_is_short_and_gives_a_thumb(
    server: RunningServer, bot: Bot, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = snippet("python")
    assert len([line for line in program.splitlines() if line.strip()]) <= 10
    monkeypatch.setenv("LORELOOP_URL", server.url)
    monkeypatch.setenv("LORELOOP_FEEDBACK_KEY", server.key)
    monkeypatch.setenv("no_proxy", "*")
    names: dict[str, Any] = {}
    exec(program, names)
    turn = bot.ask()
    assert names["thumb"](turn, False, "ann")["target_id"] == turn
    assert (bot.last()["value"], bot.last()["who"]) == (False, "ann")


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no node")
def test_the_javascript_gives_a_thumb_with_a_token(server: RunningServer, bot: Bot, tmp_path: Path) -> None:
    (tmp_path / "thumb.mjs").write_text(snippet("javascript"))
    subprocess.run(["node", "--check", str(tmp_path / "thumb.mjs")], check=True)
    wanted = {"deployment": "snippets", "origins": ["*"]}
    token = bot.send("POST", "/loop/v1/feedback-tokens", wanted)["token"]
    turn = bot.ask()
    (tmp_path / "page.mjs").write_text(
        f"""
        globalThis.LORELOOP_URL = {json.dumps(server.url)};
        globalThis.FEEDBACK_TOKEN = {json.dumps(token)};
        const {{ thumb }} = await import("./thumb.mjs");
        console.log(JSON.stringify(await thumb({json.dumps(turn)}, true, "ann")));
        try {{ await thumb("nothing", true, "ann"); }} catch (error) {{ console.log(JSON.stringify(error.message)); }}
        """
    )
    ran = subprocess.run(["node", str(tmp_path / "page.mjs")], check=True, capture_output=True, timeout=60)
    given, refused = (json.loads(line) for line in ran.stdout.splitlines())
    assert (given["target_id"], given["value"], given["giver"].endswith("/browser")) == (turn, True, True)
    assert "no turn or episode 'nothing'" in refused

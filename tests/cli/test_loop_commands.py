"""`loreloop loop turns`, `review` and `signs` beside a running server whose deployment records."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import httpx
import pytest
from click.testing import CliRunner, Result

from loreloop.cli import loop_review
from loreloop.cli.main import cli
from loreloop.cli.server import RunningServer

Ask = Callable[..., str]


def run(server: RunningServer, *words: str, keys: str = "") -> Result:
    ended = CliRunner().invoke(cli, [*words, "--data", str(server.data)], input=keys, catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    return ended


def client_of(server: RunningServer) -> httpx.Client:
    headers = {"authorization": f"Bearer {server.key}"}
    return httpx.Client(base_url=server.url, headers=headers, timeout=60, trust_env=False)


@pytest.fixture
def bot(server: RunningServer, request: pytest.FixtureRequest) -> str:
    """A deployment that records, of a name of its own."""
    name = f"bot-{abs(hash(request.node.name)) % 10**8}"
    run(server, "deploy", "set", name, "tiny", "--record", "--cold")
    return name


def ask(server: RunningServer, name: str, question: str, user: str = "ann") -> str:
    """The id of an answer, whose turn is kept."""
    body = {"model": name, "messages": [{"role": "user", "content": question}], "max_tokens": 4, "user": user}
    with client_of(server) as client:
        id = str(client.post("/v1/chat/completions", json=body).raise_for_status().json()["id"])
        until = time.monotonic() + 20
        while client.get(f"/loop/v1/turns/{id}").status_code != 200:
            assert time.monotonic() < until
            time.sleep(0.05)
    return id


def said(server: RunningServer, name: str) -> list[dict[str, Any]]:
    with client_of(server) as client:
        return list(client.get(f"/loop/v1/deployments/{name}/feedback").raise_for_status().json()["feedback"])


def test_turns_are_shown_with_what_became_of_them(server: RunningServer, bot: str) -> None:
    ids = [ask(server, bot, f"question {number}", user=f"u{number}") for number in range(3)]
    shown = json.loads(run(server, "loop", "turns", bot, "--json").stdout)
    assert [row["id"] for row in shown] == ids[::-1]
    assert {row["fate"] for row in shown} == {"waiting"}
    assert shown[0]["asked"] == "question 2"
    (one,) = json.loads(run(server, "loop", "turns", bot, "--user", "u1", "--json").stdout)
    assert one["id"] == ids[1]
    told = run(server, "loop", "turns", bot, "--fate", "waiting", "--limit", "1")
    assert len(told.stdout.splitlines()) == 2, "a head and one row"
    assert "3 waiting: nobody has said anything about it yet" in told.stderr


def test_labels_by_keyboard_make_the_golden_set(
    server: RunningServer, bot: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [ask(server, bot, f"what is {number}?") for number in range(6)]
    monkeypatch.setattr(click, "edit", lambda text: "It is 3.\n")
    # Good; bad with a note; skipped; an edit; half a score, taken back with the next turn before its label; the end.
    run(server, "loop", "review", bot, "--who", "eva", keys="u" + "nwrong sum\nd" + "s" + "e" + "3" + "bq")
    labels = said(server, bot)
    assert [(one["target_id"], one["metric"], one["value"]) for one in labels] == [
        (ids[0], "thumb", True),
        (ids[1], "thumb", False),
        (ids[3], "demonstration", "It is 3."),
        (ids[4], "score", 0.5),
    ]
    assert [one["retracted"] for one in labels] == [False, False, False, True]
    assert {(one["who"], one["source"], one["tags"]["golden"]) for one in labels} == {("eva", "human", "1")}
    assert labels[1]["why"] == "wrong sum"
    # What was skipped or taken back comes again, and what is labelled does not.
    again = run(server, "loop", "review", bot, keys="x" + "uuu")
    assert loop_review.HELP in again.stdout
    assert "3 labels on 3 turns" in again.stdout
    assert [one["target_id"] for one in said(server, bot)[4:]] == [ids[2], ids[4], ids[5]]
    assert "No turn waits for a label." in run(server, "loop", "review", bot).stdout
    assert "0 labels on 1 turns." in run(server, "loop", "review", bot, "--all", "--who", "bob", keys="q").stdout


def test_a_screen_is_not_moved_by_what_was_said(server: RunningServer, bot: str) -> None:
    ask(server, bot, "red \x1b[31m and\x07 loud")
    assert "\x1b[31m" not in run(server, "loop", "review", bot, keys="q").stdout


def test_signs_are_sent_once(server: RunningServer, bot: str) -> None:
    first = ask(server, bot, "How do I reset my password?")
    ask(server, bot, "how can I reset the password")
    (sign,) = json.loads(run(server, "loop", "signs", bot, "--json").stdout)
    assert (sign["turn"], sign["sign"], sign["accepted"]) == (first, "rephrase", False)
    assert said(server, bot) == []
    for _ in range(2):
        run(server, "loop", "signs", bot, "--send")
    assert [(one["target_id"], one["source"], one["value"]) for one in said(server, bot)] == [
        (first, "implicit", False)
    ]
    assert json.loads(run(server, "loop", "signs", bot, "--kind", "copy", "--json").stdout) == []


def test_metrics_are_declared_and_shown(server: RunningServer, bot: str, tmp_path: Path) -> None:
    file = tmp_path / "metrics.toml"
    file.write_text("[metrics.polite]\ntype = 'boolean'\n")
    rows = json.loads(run(server, "deploy", "metrics", bot, str(file), "--json").stdout)
    assert [row["name"] for row in rows if row["declared"]] == ["polite"]
    file.write_text("[metrics.slow]\ntype = 'float'\noptimize = 'min'\n")
    run(server, "deploy", "set", bot, "tiny", "--cold", "--metrics", str(file))
    (row,) = (row for row in json.loads(run(server, "deploy", "metrics", bot, "--json").stdout) if row["declared"])
    assert (row["name"], row["type"], row["level"], row["optimize"]) == ("slow", "float", "inference", "min")

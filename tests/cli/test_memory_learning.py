"""`loreloop memory train` teaches a head on a running server, and the other verbs take it by its path."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from loreloop.cli import memory as command
from loreloop.cli.server import RunningServer
from loreloop.memory.learning import course, exam
from loreloop.protocol.errors import BadRequest
from tests.cli.test_memory import CHAT

# The SDK leaves its own background tasks to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore")


def test_a_trained_head_is_evaluated_by_its_path(
    server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(course, "HEAD", course.Plan(steps=2, batch=4, lengths=((20, 1),), size=2))
    monkeypatch.setattr(exam, "SEEDS", 1)
    monkeypatch.setattr(exam, "TURNS", 20)
    monkeypatch.setenv("TINKER_BASE_URL", server.url)
    monkeypatch.setenv("TINKER_API_KEY", server.key)
    out, chats = tmp_path / "head.json", tmp_path / "chats.json"
    common = ["--data", str(server.data), "--model", "tiny"]
    trained = CliRunner().invoke(command.memory, ["train", "head", "--out", str(out), *common], catch_exceptions=False)
    path = trained.stdout.strip().splitlines()[-1]
    assert path.startswith("tinker://")
    record = json.loads(out.read_text())
    assert (record["path"], len(record["losses"]), len(record["rewards"])) == (path, 2, 1)
    assert [sitting["when"] for sitting in record["sittings"]] == [
        "surface",
        "before",
        "after lessons",
        "after rewards",
    ]

    chats.write_text(json.dumps(CHAT))
    arguments = ["eval", str(chats), "--format", "beam", "--budget", "0.5", "--json", *common]
    evaluated = CliRunner().invoke(
        command.memory, [*arguments, "--importance", f"learned:{path}"], catch_exceptions=False
    )
    (row,) = json.loads(evaluated.stdout)["tables"]["asking a model"]
    assert row["recall"]["n"] == 1
    assert path in row["contender"]


@pytest.mark.parametrize(
    ("option", "value"), [("--importance", "learned:"), ("--importance", "clever"), ("--refill", "surface")]
)
def test_a_part_that_is_none_is_named(tmp_path: Path, server: RunningServer, option: str, value: str) -> None:
    chats = tmp_path / "chats.json"
    chats.write_text(json.dumps(CHAT))
    arguments = ["eval", str(chats), "--format", "beam", option, value, "--data", str(server.data), "--model", "tiny"]
    with pytest.raises(BadRequest, match=f"{option} is '{value}'; give"):
        CliRunner().invoke(command.memory, arguments, catch_exceptions=False)


def test_a_model_without_a_file_is_refused() -> None:
    with pytest.raises(BadRequest, match="no FILE"):
        CliRunner().invoke(command.memory, ["eval", "--importance", "learned:tiny"], catch_exceptions=False)

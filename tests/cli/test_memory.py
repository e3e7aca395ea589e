"""`loreloop memory eval` reads a file that the user has, and says what is wrong with one that it cannot read."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from loreloop.cli import memory as command
from loreloop.protocol.errors import BadRequest

CHAT = [
    {
        "chat_id": 3,
        "messages": [
            {"id": number, "role": "user" if number % 2 == 0 else "assistant", "content": f"My cat {number} is Odin."}
            for number in range(12)
        ],
        "questions": {"information_extraction": [{"question": "Which cat?", "answer": "Odin", "source_chat_ids": [4]}]},
    }
]


@pytest.fixture
def chat_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(command, "counter", lambda _data_dir, _model: lambda text: len(text.split()))
    path = tmp_path / "chats.json"
    path.write_text(json.dumps(CHAT))
    return path


def test_tables_and_json(chat_file: Path) -> None:
    arguments = ["eval", str(chat_file), "--format", "beam", "--budget", "0.5"]
    table = CliRunner().invoke(command.memory, arguments, catch_exceptions=False)
    assert "| recency window | 50% | 0.000" in table.output
    asked = CliRunner().invoke(command.memory, [*arguments, "--json", "--only", "chat-3"], catch_exceptions=False)
    rows = json.loads(asked.output)["tables"]["not knowing the question"]
    assert {row["recall"]["n"] for row in rows} == {1}


def test_what_cannot_be_read_is_named(chat_file: Path) -> None:
    for arguments in (["--only", "chat-9"], ["--format", "locomo"]):
        with pytest.raises(BadRequest, match=r"chats\.json"):
            CliRunner().invoke(
                command.memory, ["eval", str(chat_file), "--format", "beam", *arguments], catch_exceptions=False
            )

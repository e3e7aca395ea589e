"""`loreloop memory eval` and `answers` read a file that the user has, and say what is wrong with another."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from loreloop.cli import chat as plain_chat
from loreloop.cli import memory as command
from loreloop.cli import memory_inputs
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
    for module in (command, memory_inputs):  # `answers` looks it up when it runs
        monkeypatch.setattr(module, "counter", lambda _data_dir, _model: lambda text: len(text.split()))
    path = tmp_path / "chats.json"
    path.write_text(json.dumps(CHAT))
    return path


def test_tables_and_json(chat_file: Path) -> None:
    arguments = ["eval", str(chat_file), "--format", "beam", "--budget", "0.5"]
    table = CliRunner().invoke(command.memory, arguments, catch_exceptions=False)
    assert "| recency window | 50% | 0.000" in table.output
    result = CliRunner().invoke(command.memory, [*arguments, "--json", "--only", "chat-3"], catch_exceptions=False)
    rows = json.loads(result.stdout)["tables"]["not knowing the question"]
    assert {row["recall"]["n"] for row in rows} == {1}


LOCOMO = [
    {
        "sample_id": "conv-x",
        "conversation": {
            "session_1": [{"speaker": "Ann", "dia_id": f"D1:{n}", "text": f"My cat {n} is Odin{n}."} for n in range(9)]
        },
        "qa": [{"question": "Which is cat 8?", "answer": "Odin8", "evidence": ["D1:8"], "category": 4}],
    }
]


def test_a_served_model_is_asked_with_each_context(chat_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[dict[str, Any]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json={"data": [{"id": "m"}]})
        sent.append(json.loads(request.content))
        text = "Odin8" if "Odin8" in sent[-1]["messages"][0]["content"] else "not mentioned"
        return httpx.Response(200, json={"choices": [{"message": {"content": text}}]})

    def client_of(_url: str, _key: str) -> httpx.Client:
        return httpx.Client(base_url="http://any.example/v1", transport=httpx.MockTransport(answer))

    monkeypatch.setattr(plain_chat, "client_of", client_of)
    chat_file.write_text(json.dumps(LOCOMO))
    arguments = ["answers", str(chat_file), "--budget", "20", "--contender", "recency window", "--window", "50"]
    output = CliRunner().invoke(command.memory, arguments, catch_exceptions=False).output
    assert "| no context | – | 0 | 0.000" in output
    assert "| oracle context, evidence ± 1 turn | – | 12 | 1.000" in output
    assert "| recency window | 20 | 18 | 1.000" in output
    faults = chat_file.with_name("faults.json")
    faults.write_text(json.dumps([{"sample_id": "conv-x", "qa_index": 0, "correct_answer": "Odin8 or not mentioned"}]))
    cleaned = CliRunner().invoke(command.memory, [*arguments, "--faults", str(faults)], catch_exceptions=False).output
    assert "| no context | – | 0 | 0.667" in cleaned, "two of four words, all of what was said"
    assert "| recency window | 20 | 18 | 0.400" in cleaned, "one of four words"
    assert {(body["model"], body["temperature"], body["max_tokens"]) for body in sent} == {("m", 0, 32)}
    with pytest.raises(BadRequest, match="there are memory"):
        CliRunner().invoke(command.memory, [*arguments, "--contender", "magic"], catch_exceptions=False)


def test_what_cannot_be_read_is_named(chat_file: Path) -> None:
    for arguments in (["--only", "chat-9"], ["--format", "locomo"]):
        with pytest.raises(BadRequest, match=r"chats\.json"):
            CliRunner().invoke(
                command.memory, ["eval", str(chat_file), "--format", "beam", *arguments], catch_exceptions=False
            )

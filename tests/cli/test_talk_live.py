"""`loreloop chat` while an answer comes: Ctrl-C ends the answer and nothing else, thoughts are seen."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from loreloop.cli.chat import Talk, client_of
from loreloop.cli.server import RunningServer, running_server
from tests.tiny import CHAT_TEMPLATE, make_tiny_model, make_tokenizer

LONG = 3000  # tokens; the tiny model takes seconds for them


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """`tiny` talks, all that `deep` says is a thought at first, since its template opens one."""
    data = tmp_path_factory.mktemp("data")
    for name, opened in (("tiny", "{# <think> #}"), ("deep", "{% if add_generation_prompt %}<think>\n{% endif %}")):
        folder = make_tiny_model(data / "models" / name, "qwen3", max_position_embeddings=8192)
        make_tokenizer(folder, 512, template=CHAT_TEMPLATE + opened)
    settings = ["--model", "tiny", "--model", "deep", "--precision", "fp32", "--threads", "1"]
    with running_server(str(data), settings) as running:
        yield running


def begin(server: RunningServer, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "loreloop.cli", "chat", "--max-tokens", str(LONG), "--temperature", "0", *options]
    return subprocess.Popen(
        command,
        env=os.environ | {"TINKER_BASE_URL": server.url, "TINKER_API_KEY": server.key},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    )


@pytest.mark.parametrize("model", ["tiny", "deep"])
def test_ctrl_c_ends_the_answer_only(thinker: RunningServer, tmp_path: Path, model: str) -> None:
    file = tmp_path / "talk.json"
    talk = begin(thinker, "--model", model)
    assert talk.stdin
    assert talk.stdout
    assert talk.stderr
    talk.stdout.readline()  # whom one talks to
    talk.stdin.write(b"hello\n")
    assert (talk.stdout if model == "tiny" else talk.stderr).read(1)
    talk.send_signal(signal.SIGINT)
    rest, errors = talk.communicate(f"/save {file}\n".encode(), timeout=60)
    assert talk.returncode == 0, errors
    assert "…" in rest.decode()
    asked, answered = json.loads(file.read_text())["messages"]
    assert asked == {"role": "user", "content": "hello"}
    said = answered["content" if model == "tiny" else "reasoning_content"]
    assert 0 < len(said) < LONG  # a token has at least a character


def test_ctrl_c_without_an_answer_to_end_ends_a_piped_conversation(thinker: RunningServer) -> None:
    talk = begin(thinker, "--model", "tiny")
    assert talk.stdout
    talk.stdout.readline()
    talk.send_signal(signal.SIGINT)
    _, errors = talk.communicate(timeout=60)
    assert (talk.returncode, errors.decode().strip()) == (130, "Stopped.")


def test_ctrl_c_ends_the_wait_for_a_server_that_is_silent(thinker: RunningServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        talk = begin(thinker, "--url", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with silent.accept()[0]:
            talk.send_signal(signal.SIGINT)
            _, errors = talk.communicate(timeout=60)
    assert (talk.returncode, errors.decode().strip()) == (130, "Stopped.")


def test_a_thought_is_seen_apart_from_the_answer(thinker: RunningServer, capsys: pytest.CaptureFixture[str]) -> None:
    with client_of(thinker.url, thinker.key) as client:
        talk = Talk(client, "tiny", "", {"regex": "<think>hm</think>yes", "max_tokens": 60})
        talk.say("well?")
    assert talk.messages[1] == {"role": "assistant", "content": "yes", "reasoning_content": "hm"}
    shown = capsys.readouterr()
    assert shown.out == "yes\n"
    assert shown.err == "hm\n\n"

"""Memories on a real server through the unmodified `openai` and `anthropic` packages, and through its death."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest

from loreloop.cli.server import RunningServer, running_server
from tests.sdk.test_recovery import process

MEMORY = {"memory": {"id": "ann", "budget_tokens": 256}}
HEADER = {"x-loreloop-memory": "ann;budget=256"}


def shown(server: RunningServer, id: str, whose: str = "", key: str = "") -> dict[str, Any]:
    headers = {"x-api-key": key or server.key}
    answer = httpx.get(f"{server.url}/loop/v1/memories/{id}", params={"user": whose}, headers=headers)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def talker(server: RunningServer, key: str = "") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key or server.key, max_retries=0)


def test_the_packages_send_and_read_it(server: RunningServer) -> None:
    client, whose = talker(server), {"user": "packages"}
    usual: dict[str, Any] = {"model": "tiny", "seed": 1, "extra_body": MEMORY, **whose}
    first = client.chat.completions.create(
        messages=[{"role": "user", "content": "My code is 4711."}], max_tokens=4, **usual
    )
    assert first.model_extra is not None
    assert first.model_extra["memory"]["turns"] == 2
    bare = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "And now?"}], max_tokens=4, seed=1
    )
    second = client.chat.completions.create(messages=[{"role": "user", "content": "And now?"}], max_tokens=4, **usual)
    assert second.usage is not None
    assert bare.usage is not None
    assert second.usage.prompt_tokens > bare.usage.prompt_tokens + 10
    *_, last = client.chat.completions.create(
        messages=[{"role": "user", "content": "Third"}], max_tokens=4, stream=True, **usual
    )
    assert last.model_extra is not None
    assert last.model_extra["memory"]["turns"] == 6
    answer = client.responses.create(input="Fourth", max_output_tokens=16, model="tiny", extra_body=MEMORY, **whose)
    assert answer.model_extra is not None
    assert answer.model_extra["memory"]["turns"] == 8
    *_, done = client.responses.create(
        input="Fifth", max_output_tokens=16, model="tiny", extra_headers=HEADER, stream=True, **whose
    )
    assert done.response.model_extra["memory"]["turns"] == 10  # type: ignore[union-attr,index]
    claude = anthropic.Anthropic(base_url=f"{server.url}/anthropic/api", api_key=server.key, max_retries=0)
    asked: dict[str, Any] = {
        **{"model": "tiny", "max_tokens": 4, "metadata": {"user_id": "packages"}, "extra_headers": HEADER}
    }
    told = claude.messages.create(messages=[{"role": "user", "content": "Sixth"}], **asked)
    assert told.model_extra is not None
    assert told.model_extra["memory"]["turns"] == 12
    with claude.messages.stream(messages=[{"role": "user", "content": "Seventh"}], **asked) as stream:
        stream.until_done()
    kept = shown(server, "ann", "packages")
    assert kept["turns"] == 14
    heads = [segment["text"] for segment in kept["segments"] if segment["role"] == "user"]
    assert heads == [
        *("user: My code is 4711.", "user: And now?", "user: Third", "user: Fourth", "user: Fifth"),
        *("user: Sixth", "user: Seventh"),
    ]


def test_refusals_are_the_packages_own_errors(server: RunningServer) -> None:
    client = talker(server)
    usual: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    with pytest.raises(openai.BadRequestError, match="say how large"):
        client.chat.completions.create(**usual, extra_body={"memory": {"id": "nobody"}})
    assert httpx.get(f"{server.url}/loop/v1/memories/nobody", headers={"x-api-key": server.key}).status_code == 404


def test_the_pages_example_runs(server: RunningServer) -> None:
    page = (Path(__file__).parents[2] / "docs" / "memory.md").read_text()
    (example,) = re.findall(r"<!-- on the server.*?```python\n(.*?)```", page, re.DOTALL)
    example = example.replace("http://127.0.0.1:8000", server.url).replace("smollm2-135m", "tiny")
    example = example.replace("tml-...", server.key).replace('"ann"', '"of-the-page"')
    done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert shown(server, "of-the-page")["turns"] == 4
    assert "'remembered': True" in done.stdout


@pytest.fixture
def own_server(tmp_path: Path, tiny_folder: Path) -> Iterator[RunningServer]:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny").symlink_to(tiny_folder)
    with running_server(str(tmp_path), ["--model", "tiny", "--precision", "fp32", "--threads", "1"]) as running:
        yield running


def test_acknowledged_turns_survive_the_servers_death(own_server: RunningServer) -> None:
    client = talker(own_server).with_options(max_retries=8)
    for number in range(4):
        answer = client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": f"My friend {number} is Ann{number}."}],
            max_tokens=3,
            extra_body=MEMORY,
        )
        assert answer.model_extra is not None
        assert answer.model_extra["memory"]["turns"] == 2 * number + 2
        process(own_server, "http_process").kill()  # SIGKILL, right behind the answer
    client.models.list()
    kept = shown(own_server, "ann")
    assert kept["turns"] == 8
    said = [segment["text"] for segment in kept["segments"] if segment["role"] == "user"]
    assert said == [f"user: My friend {number} is Ann{number}." for number in range(4)]

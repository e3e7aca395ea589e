"""`loreloop train` with environments by name, on the command line and in a file: tasks, tools, pictures, refusals."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from click.testing import CliRunner, Result

from loreloop.cli import train_tools
from loreloop.cli.main import cli
from loreloop.cli.server import RunningServer, running_server
from loreloop.learn.environments.environment import Step
from loreloop.learn.environments.tools import Rewarded
from loreloop.learn.examples import Task
from loreloop.learn.methods import Order
from loreloop.learn.plan import Plan
from loreloop.learn.rendering import Renderer
from loreloop.learn.rewards.reward import Answer, Score
from loreloop.learn.settings import GrpoSettings
from loreloop.protocol.errors import LoreloopError
from loreloop.text.conversation import Conversation, MadeCall, Turn
from tests.tiny import make_tiny_model
from tests.tiny_vision import make_tiny_vision_model

# The SDK leaves its own background tasks to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore")

SIZED = ("--epochs", "1", "--batch-size", "2", "--group-size", "2", "--answer-tokens", "6", "--turns", "2")
ADDER = Path(__file__).parents[1] / "clients" / "adder.py"


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server of a model whose window holds descriptions of tools, and of one that sees."""
    data = tmp_path_factory.mktemp("data")
    make_tiny_model(data / "models" / "talks", "qwen3", max_position_embeddings=8192)
    make_tiny_vision_model(data / "models" / "sees", "qwen3_vl")
    models = ["--model", "talks", "--model", "sees", "--precision", "fp32", "--threads", "1"]
    with running_server(str(data), models) as server:
        yield server


Train = Callable[..., Result]


@pytest.fixture
def train(roomy: RunningServer, tmp_path: Path) -> Train:
    def go(*words: str, model: str = "talks") -> Result:
        usual = ("--model", model, "--out", str(tmp_path / "run"), "--rank", "4", "--lr", "0.001")
        address = ("--url", roomy.url, "--key", roomy.key)
        return CliRunner().invoke(cli, ["train", "grpo", *usual, *address, *SIZED, *words], catch_exceptions=False)

    return go


def record(tmp_path: Path) -> dict[str, Any]:
    return json.loads((tmp_path / "run" / "run.json").read_text())


def metrics(tmp_path: Path) -> list[dict[str, float]]:
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["metrics"] for line in lines]


@pytest.mark.parametrize(
    ("words", "model", "part"),
    [
        (("--environment", "shop", "--environment-options", '{"fault_rate": 0.5}'), "talks", "ordered"),
        (("--environment", "puzzles:chain_sum", "--environment-options", '{"max_terms": 2}'), "talks", "form"),
        (("--environment", "shapes", "--environment-options", '{"asks": ["count"]}'), "sees", "form"),
    ],
)
def test_an_environment_brings_its_own_tasks(
    train: Train, tmp_path: Path, words: tuple[str, ...], model: str, part: str
) -> None:
    ran = train(*words, "--tasks", "4", "--eval-tasks", "2", model=model)
    assert ran.exit_code == 0, ran.stderr
    first, last = metrics(tmp_path)
    assert (first["train_failed"], last["train_failed"]) == (0, 0)
    assert first.keys() >= {f"train_part_{part}"}
    assert last.keys() >= {"valid_reward_mean", f"valid_part_{part}"}
    kept = record(tmp_path)
    assert kept["data_sha256"] is None
    assert f"--environment {words[1]}" in kept["command"]
    # Its command goes on where the run stands, which is its end.
    assert train(*words, "--tasks", "4", "--eval-tasks", "2", model=model).stdout == ran.stdout


def test_a_config_file_has_the_same_names(train: Train, tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    of_the_run = 'environment = "puzzles:leg_counting"\ntasks = 2\neval-tasks = 0\n'
    config.write_text(f"{of_the_run}[environment-options]\nmin_animals = 2\nmax_animals = 3\n")
    ran = train("--config", str(config))
    assert ran.exit_code == 0, ran.stderr
    settings = record(tmp_path)["settings"]
    assert (settings["environment"], settings["tasks"], settings["eval_tasks"]) == ("puzzles:leg_counting", 2, 0)
    assert json.loads(settings["environment_options"]) == {"min_animals": 2, "max_animals": 3}


GRADER = json.dumps({"type": "length", "name": "short", "unit": "characters", "max": 3, "buffer": 20})


@pytest.fixture
def asked_for(tmp_path: Path) -> str:
    file = tmp_path / "tasks.jsonl"
    file.write_text("\n".join(json.dumps({"messages": [{"role": "user", "content": f"double {n}"}]}) for n in (3, 4)))
    return str(file)


@pytest.mark.parametrize("tools", ["calculator", "python"])
def test_tools_are_told_to_the_model(train: Train, tmp_path: Path, asked_for: str, tools: str) -> None:
    ran = train("--data", asked_for, "--grader", GRADER, "--tools", tools)
    assert ran.exit_code == 0, ran.stderr
    assert metrics(tmp_path)[0]["train_failed"] == 0


def test_the_tools_of_an_environment_count_for_the_window(train: Train, asked_for: str) -> None:
    words = ("--data", asked_for, "--grader", GRADER, "--answer-tokens", "8100")
    with pytest.raises(LoreloopError, match=r"Example 1 with its answer has .* tokens"):
        train(*words, "--tools", "calculator")


def test_the_tools_of_a_registered_server_are_told_to_the_model(train: Train, tmp_path: Path, asked_for: str) -> None:
    folder = str(tmp_path / "registry")
    added = CliRunner().invoke(cli, ["tools", "add", "adder", "--data", folder, "--", sys.executable, str(ADDER)])
    assert added.exit_code == 0, added.output
    words = ("--data", asked_for, "--grader", GRADER, "--tools", "mcp:adder", "--data-folder", folder)
    ran = train(*words)
    assert ran.exit_code == 0, ran.stderr
    assert metrics(tmp_path)[0]["train_failed"] == 0
    assert "--tools mcp:adder" in record(tmp_path)["command"]
    assert f"--data-folder {folder}" in record(tmp_path)["command"]


def test_a_call_that_runs_out_of_time_is_recorded_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(tmp_path / "registry")
    CliRunner().invoke(cli, ["tools", "add", "adder", "--data", folder, "--", sys.executable, str(ADDER)])
    monkeypatch.setattr(train_tools, "CALL_SECONDS", 4.0)
    plan = Plan(base_model="talks", name="grpo")
    order = Order("grpo", plan, GrpoSettings(tools="mcp:adder"), cast(Renderer, None), [])

    async def right(answer: Answer, task: Task) -> Score:
        return Score(float(answer.text == "6"))

    async def played() -> list[Step]:
        async with train_tools.with_tools(order, folder) as whole:
            environment = Rewarded(whole.tools, right)
            await environment.reset(Task(Conversation((Turn("user", "double 3"),))))
            calls = [MadeCall(name, f"adder__{name}", '{"x": 3}') for name in ("double", "fail", "sleep")]
            steps = [await environment.step(Answer("", (call,))) for call in calls]
            return [*steps, await environment.step(Answer("6"))]

    well, failed, late, end = asyncio.run(played())
    assert late.turns[0].content == "Error: The tool did not answer in time."
    assert "fail" in failed.turns[0].content
    assert well.turns[0].content == "twice 3 is 6"
    counted = [(step.parts["failed_calls"], step.parts["timed_out_calls"]) for step in (well, failed, late, end)]
    assert counted == [(0, 0), (1, 0), (1, 1), (0, 0)]
    assert end.reward == 1
    shown = CliRunner().invoke(cli, ["tools", "calls", "--data", folder, "--json"])
    calls = json.loads(shown.stdout)
    assert [(call["tool"], call["outcome"]) for call in calls] == [
        ("sleep", "timeout"),
        ("fail", "error"),
        ("double", "ok"),
    ]
    assert all(call["key_id"] == "loreloop train" for call in calls)
    assert calls[0]["seconds"] >= 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "There is nothing to learn from; name a file with --data, or an --environment"),
        (("--environment", "moon"), "There is no environment 'moon'; there are shop, shapes and puzzles:NAME"),
        (("--environment", "shop", "--environment-options", '{"luck": 1}'), "The options of shop are wrong: .*luck"),
        (("--environment", "shop", "--environment-options", "[]"), "they are one JSON object"),
        (("--environment", "shop", "--environment-options", "{"), "The options of shop are wrong"),
        (("--environment", "shop", "--tools", "calculator"), "leave --tools out"),
        (("--environment", "shop", "--grader", GRADER), "leave --grader out"),
        (("--environment", "puzzles:sleep"), "no tasks named 'sleep'"),
        (("--environment", "puzzles:chain_sum", "--environment-options", '{"max_terms": -1}'), "are wrong"),
        (("--environment", "shapes", "--tasks", "2"), "reads text only"),
    ],
)
def test_what_there_is_not_is_refused(train: Train, words: tuple[str, ...], said: str) -> None:
    with pytest.raises(LoreloopError, match=said):
        train(*words)


def test_puzzles_take_no_tasks_from_a_file(train: Train, asked_for: str) -> None:
    with pytest.raises(LoreloopError, match="Only the package that makes puzzles knows their answers"):
        train("--environment", "puzzles:chain_sum", "--data", asked_for)


@pytest.mark.parametrize(
    ("tools", "said"), [("mcp:nobody", "no tool server 'nobody'"), ("hammer", "There are no tools 'hammer' here")]
)
def test_tools_that_there_are_not_are_refused(
    train: Train, tmp_path: Path, asked_for: str, tools: str, said: str
) -> None:
    folder = str(tmp_path / "registry")
    with pytest.raises(LoreloopError, match=said):
        train("--data", asked_for, "--grader", GRADER, "--tools", tools, "--data-folder", folder)

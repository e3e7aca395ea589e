"""SFT beside rehearsal against a real server: what is rehearsed stays as it was while something else is learned."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import tinker

from loreloop.cli.server import RunningServer
from loreloop.learn.clients import Clients
from loreloop.learn.examples import Task
from loreloop.learn.files import tasks
from loreloop.learn.learners.rehearsal import Rehearsed, SftWithRehearsal, datum_of, drift
from loreloop.learn.loop.answering import Room, likely_of
from loreloop.learn.loop.general import N_LIKELY
from loreloop.learn.loop.rehearsing import line_of, rehearsed_of
from loreloop.learn.plan import Plan
from loreloop.learn.rendering import Renderer, renderer_of
from tests.learn.runs import plan, run_of, said, service, shown

# The SDK leaves its own background tasks to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore")
PROMPTS = [f"tell me of {thing}" for thing in ("foxes", "dogs", "rivers", "bread", "ships", "winter")]


@pytest.fixture(scope="module")
def renderer(tiny_folder: Path) -> Renderer:
    return renderer_of(tiny_folder)


@pytest.fixture(scope="module")
def rehearsed(server: RunningServer, renderer: Renderer) -> list[Rehearsed]:
    """What the bare model says, and might have said, to some prompts."""
    tasks = [Task(said(prompt)) for prompt in PROMPTS]

    async def go() -> list[Rehearsed]:
        with service(server) as client:
            told = await Room(client, renderer).likely_answers("tiny", tasks, 8, N_LIKELY)
        return [Rehearsed(task.prompt, one.tokens, one.likely) for task, one in zip(tasks, told, strict=True)]

    return asyncio.run(go())


def learner(renderer: Renderer, rehearsed: list[Rehearsed], beside: int) -> Any:
    async def make(made: Plan, clients: Clients) -> SftWithRehearsal:
        return SftWithRehearsal(made, await clients.training(), renderer, rehearsed, beside)

    return make


def test_targets_stand_at_the_places_of_the_answer_with_their_probabilities(renderer: Renderer) -> None:
    prompt = said("tell me of foxes")
    datum = datum_of(renderer, Rehearsed(prompt, (7, 8), (((7, 0.6), (9, 0.2)), ((8, 0.5),))))
    n = len(renderer.prompt_tokens(prompt))
    targets = datum.loss_fn_inputs["target_tokens"].to_numpy()
    weights = datum.loss_fn_inputs["weights"].to_numpy()
    assert datum.model_input.to_ints() == [*renderer.prompt_tokens(prompt), 7]
    assert targets.shape == weights.shape == (n + 1, 2)
    assert targets[n - 1 :].tolist() == [[7, 9], [8, 0]]
    assert np.allclose(weights[n - 1 :], [[0.75, 0.25], [1.0, 0.0]])
    assert not weights[: n - 1].any()


def test_drift_is_the_divergence_from_what_was_said(renderer: Renderer) -> None:
    datum = datum_of(renderer, Rehearsed(said("hi"), (7,), (((7, 0.75), (9, 0.25)),)))
    logprobs = np.zeros((len(renderer.prompt_tokens(said("hi"))), 2), np.float32)
    logprobs[-1] = np.log([0.5, 0.4])
    found = drift([datum], [{"logprobs": tinker.TensorData.from_numpy(logprobs)}])
    assert found == pytest.approx(0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.4))


def test_a_server_that_tells_no_alternatives_is_taken_to_have_been_sure() -> None:
    sequence: Any = SimpleNamespace(tokens=[7, 8], topk_logprobs=None)
    assert likely_of(sequence) == (((7, 1.0),), ((8, 1.0),))


def test_what_is_rehearsed_stays_while_something_else_is_learned(
    server: RunningServer, renderer: Renderer, rehearsed: list[Rehearsed]
) -> None:
    taught = [shown("what is 1?", "it is two and one"), shown("what is 2?", "it is three and two")]
    settings = plan(epochs=15, batch_size=2, learning_rate=3e-3, schedule="constant")
    alone, beside = (
        run_of(server, learner(renderer, rehearsed, n), settings, taught, held_out=taught[:1]).records for n in (0, 4)
    )
    assert "train_drift" not in alone[0].metrics
    assert abs(beside[0].metrics["train_drift"]) < 1e-3, "before anything is learned"
    assert beside[-1].metrics["valid_drift"] < 0.3 * alone[-1].metrics["valid_drift"]
    assert beside[-1].metrics["train_loss"] < 0.5 * beside[0].metrics["train_loss"]
    assert beside[0].tokens > alone[0].tokens


def test_a_line_that_is_read_again_is_the_prompt_that_was_asked(tmp_path: Path) -> None:
    """With its tools: probabilities of a call, learned where no tool was offered, would teach calls of nothing."""
    tool = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}
    asked = {"messages": [{"role": "user", "content": "what time is it?"}], "tools": [tool]}
    (task,) = tasks([msgspec.json.encode(asked)])
    file = tmp_path / "rehearsed.jsonl"
    file.write_bytes(msgspec.json.encode(line_of(task, [7], [[(7, 1.0)]])))
    (read,) = rehearsed_of(file)
    assert read == Rehearsed(task.prompt, (7,), (((7, 1.0),),))
    assert read.prompt.tools

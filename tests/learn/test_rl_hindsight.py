"""Hindsight against a real server: what an outcome speaks for becomes likelier, and its files are read."""

import functools
import json
from pathlib import Path

import pytest

from loreloop.cli.server import RunningServer
from loreloop.learn.examples import Told
from loreloop.learn.file_lines import BadLine
from loreloop.learn.files import told
from loreloop.learn.learners.hindsight import Hindsight
from loreloop.learn.learners.hindsight_loop import HindsightLearner, pair_of
from loreloop.learn.rendering import Renderer, renderer_of
from loreloop.protocol.errors import BadRequest
from loreloop.text.conversation import Conversation, Turn
from tests.learn.runs import plan, run_of, said

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def renderer(tiny_folder: Path) -> Renderer:
    return renderer_of(tiny_folder)


def event(question: str, answer: str, outcome: str) -> Told:
    return Told(said(question), Conversation((Turn("assistant", answer),)), outcome)


def test_both_rows_hold_the_same_answer(renderer: Renderer) -> None:
    pair = pair_of(renderer, event("what is it?", "it is 12", "no, 34"))
    assert pair.plain.targets[pair.plain.learned].tolist() == pair.shown.targets[pair.shown.learned].tolist()
    assert renderer.tokenizer.decode(pair.plain.targets[pair.plain.learned].tolist()).startswith("it is 12")
    assert "no, 34" in renderer.tokenizer.decode(pair.shown.model_input.to_ints())
    assert "no, 34" not in renderer.tokenizer.decode(pair.plain.model_input.to_ints())
    with pytest.raises(BadRequest, match="one turn"):
        pair_of(renderer, Told(said("a"), said("b", "c"), "d"))


def test_the_difference_shrinks_as_it_is_learned(server: RunningServer, renderer: Renderer) -> None:
    # A random model's hindsight is as good as any: its policy is to approach what it says with the outcome shown.
    events = [event(f"what is {n}?", f"it is {n + 1}", f"right, it is {n + 1}") for n in range(6)]

    async def kind(made, clients):
        return await HindsightLearner.of(made, clients, renderer, Hindsight())

    ran = run_of(server, kind, plan(epochs=12, learning_rate=2e-3, schedule="constant"), events, held_out=events[:2])
    sizes = [record.metrics["train_hindsight_size"] for record in ran.records]
    assert sum(sizes[-3:]) < 0.8 * sum(sizes[:3]), sizes
    assert "valid_hindsight" in ran.records[-1].metrics


def test_lines_are_read_and_refused_by_field() -> None:
    line = {"prompt": "2 + 2?", "completion": "5", "outcome": "No, it is 4."}
    (one,) = told([json.dumps(line)])
    assert one == event("2 + 2?", "5", "No, it is 4.")
    read = functools.partial(lambda wrong: list(told([json.dumps(line | wrong)])))
    for wrong in ({"outcome": ""}, {"outcome": 3}, {"more": 1}):
        with pytest.raises(BadLine, match="Line 1"):
            read(wrong)

"""What a run shows: a bar in a terminal, lines elsewhere, and a picture."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from loreloop.cli.train_show import Bar, draw
from loreloop.learn.runner import StepRecord


def record(step: int, **metrics: float) -> StepRecord:
    return StepRecord(step=step, epoch=1, learning_rate=1e-3, metrics=metrics, tokens=100, seconds=0.5)


@pytest.mark.parametrize("terminal", [True, False])
def test_the_newest_measures_are_told(terminal: bool) -> None:
    shown = io.StringIO()
    bar = Bar(Console(file=shown, force_terminal=terminal, width=200), n_steps=100, done=0)
    with bar.progress:
        for step in range(1, 11):
            bar.tell(record(step, train_loss=1 / step))
    text = shown.getvalue()
    assert "train_loss 0.1" in text
    assert "200 tokens/s" in text
    assert ("10/100" in text) == terminal
    # A log is no place for a line a step.
    assert terminal or text.count("\n") == 2


def test_a_step_with_a_look_at_held_out_examples_has_its_line() -> None:
    shown = io.StringIO()
    Bar(Console(file=shown, force_terminal=False, width=200), 100, 0).tell(record(1, train_loss=1, valid_loss=2))
    assert "valid_loss 2" in shown.getvalue()


@pytest.mark.filterwarnings("ignore")  # of the drawing library
@pytest.mark.parametrize("ending", ["png", "svg"])
def test_a_picture_is_drawn(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"run.{ending}"
    draw([record(1, train_loss=2), record(2, train_loss=1, valid_loss=1.5, train_margin=0.1)], file, "sft of tiny")
    assert file.stat().st_size > 1000
    draw([], file, "nothing yet")

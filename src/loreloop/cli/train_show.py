"""What `loreloop train` shows: a bar with the newest measures, and a picture of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from loreloop.learn.runner import StepRecord

SHOWN = 4  # measures beside the bar
LINES = 20  # about, of a run without a terminal


class Bar:
    """A bar over a run's steps; without a terminal, a line now and then, and where held-out examples were looked at."""

    def __init__(self, console: Console, n_steps: int, done: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.console, self.every = console, max(1, n_steps // LINES)
        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[measures]}"))
        self.progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self.task = self.progress.add_task("steps", total=n_steps, completed=done, measures="")

    def tell(self, record: StepRecord) -> None:
        """Shows a step."""
        line = line_of(record)
        self.progress.update(self.task, completed=record.step, measures=line)
        looked = any(name.startswith("valid_") for name in record.metrics)
        if not self.console.is_terminal and (looked or record.step % self.every == 0):
            self.console.print(f"step {record.step}: {line}", highlight=False, soft_wrap=True)


def line_of(record: StepRecord) -> str:
    """The step's first measures, and its pace."""
    first = [f"{name} {value:.4g}" for name, value in list(record.metrics.items())[:SHOWN]]
    pace = [f"{record.tokens / record.seconds:,.0f} tokens/s"] if record.tokens and record.seconds else []
    return "  ".join([*first, *pace])


def draw(records: Sequence[StepRecord], file: Path, title: str) -> None:
    """A picture of every measure over the steps: what was trained on and what was held out share a plot."""
    import matplotlib

    matplotlib.use("Agg")  # no screen is needed
    import matplotlib.pyplot as plt

    names = dict.fromkeys(name.split("_", 1)[-1] for record in records for name in record.metrics)
    figure, axes = plt.subplots(len(names) or 1, sharex=True, figsize=(8, 2.2 * max(1, len(names))), squeeze=False)
    for axis, name in zip(axes[:, 0], names, strict=False):
        for part in ("train", "valid"):
            points = [(r.step, r.metrics[f"{part}_{name}"]) for r in records if f"{part}_{name}" in r.metrics]
            if points:
                axis.plot(*zip(*points, strict=True), label=part, marker="o" if part == "valid" else None)
        axis.set_ylabel(name.replace("_", " "))
        axis.legend()
    axes[-1, 0].set_xlabel("step")
    figure.suptitle(title)
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
    plt.close(figure)

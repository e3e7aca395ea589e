"""What the demo shows at its end: a table of shares, a picture of the rewards, and the numbers as JSON.

Takes plain values; knows no client.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import matplotlib.pyplot as plt
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Exam:
    """Shares of held-out questions answered correctly at one moment."""

    when: str
    one_digit: float
    two_digit: float


@dataclass
class Record:
    """All that one run of the demo measured. Rewards are means over a step's samples; `held_out` holds the share of
    two-digit questions answered after each of the last steps."""

    exams: list[Exam] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    one_digit_rewards: list[float] = field(default_factory=list)
    two_digit_rewards: list[float] = field(default_factory=list)
    held_out: list[float] = field(default_factory=list)
    seconds: float = 0.0


def show(record: Record, console: Console) -> None:
    """Prints the exams as a table, the range of the last rewards and the time in seconds."""
    table = Table(title="Held-out questions answered correctly (greedy, through the OpenAI client)")
    for heading in ("", "one-digit sums and products", "two-digit sums"):
        table.add_column(heading)
    for exam in record.exams:
        table.add_row(exam.when, f"{exam.one_digit:.2f}", f"{exam.two_digit:.2f}")
    console.print(table)
    if record.held_out:
        low, high = min(record.held_out), max(record.held_out)
        console.print(f"Two-digit, over the last {len(record.held_out)} steps: {low:.2f} to {high:.2f}")
    console.print(f"Training and questions took {record.seconds:.0f} s.")


def save(record: Record, folder: Path) -> Path:
    """Writes `demo.json` and `rewards.png`; gives the picture's path."""
    # The numbers are written first, so that they are there even if no picture can be drawn.
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "demo.json").write_text(json.dumps(asdict(record), indent=1))
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    n_one = len(record.one_digit_rewards)
    n_all = n_one + len(record.two_digit_rewards)
    axes.plot(range(1, n_one + 1), record.one_digit_rewards, label="one digit", color="#2a6f97")
    axes.plot(range(n_one + 1, n_all + 1), record.two_digit_rewards, label="two digits", color="#c8553d")
    # The watched steps are the last ones, so their points end where the curve ends.
    held_out_steps = range(n_all - len(record.held_out) + 1, n_all + 1)
    axes.plot(held_out_steps, record.held_out, "o", label="two digits, held out", color="#588157", markersize=4)
    axes.set(xlabel="GRPO step", ylabel="share of right answers", ylim=(0, 1.02), title="Rewards while it learns")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    figure.savefig(folder / "rewards.png", dpi=120)
    plt.close(figure)
    return folder / "rewards.png"

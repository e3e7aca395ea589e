"""`python -m bench.memory_plots`: draws docs/images/memory.png and memory-length.png out of bench/results/memory/,
as `python -m bench.memory_study` wrote it. Bars are 95 % intervals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from bench.record import RESULTS

IMAGES = Path(__file__).parents[1] / "docs" / "images"
TITLES = {"locomo": "LoCoMo, two conversations", "beam": "BEAM, seven chats of about 100,000 tokens"}
COLOURS = {
    "memory": "C0",
    "memory, whole turns only": "C9",
    "uniform compression": "C2",
    "user's words, newest first": "C1",
    "user's words, shortest first": "C4",
    "longest turns first": "C5",
    "recency window": "C3",
}


def main() -> None:
    drawn, axes = plt.subplots(1, len(TITLES), figsize=(11, 4), sharey=True)
    for axis, (name, title) in zip(axes, TITLES.items(), strict=True):
        report = json.loads((RESULTS / "memory" / f"{name}.json").read_text())
        against_budget(axis, report["tables"]["not knowing the question"])
        axis.set_title(title)
    axes[0].set_ylabel("evidence recall")
    axes[0].legend(fontsize=7)
    drawn.tight_layout()
    drawn.savefig(IMAGES / "memory.png", dpi=110)
    drawn, axis = plt.subplots(figsize=(6, 4))
    against_length(axis, json.loads((RESULTS / "memory" / "synthetic.json").read_text())["tables"])
    drawn.tight_layout()
    drawn.savefig(IMAGES / "memory-length.png", dpi=110)


def against_length(axis: Axes, tables: dict[str, list[dict[str, Any]]]) -> None:
    """Needles of the synthetic suite: recall at one budget over the turns of the conversation."""
    lengths = {int(title.split()[1]): rows for title, rows in tables.items() if title.startswith("needles")}
    turns = sorted(lengths)
    for name, colour in COLOURS.items():
        found = [row["recall"] for length in turns for row in lengths[length] if row["contender"] == name]
        if found:
            bars(axis, turns, found, name, colour)
    axis.set(
        xscale="log", xlabel="turns of the conversation", ylabel="needles that stand in 2,048 tokens", ylim=(0, 1.05)
    )
    axis.legend(fontsize=7)


def bars(axis: Axes, at: list[int] | list[float], found: list[dict[str, float]], name: str, colour: str) -> None:
    means = [one["mean"] for one in found]
    below = [one["mean"] - one["low"] for one in found]
    above = [one["high"] - one["mean"] for one in found]
    axis.errorbar(at, means, yerr=[below, above], marker="o", capsize=2, label=name, color=colour)


def against_budget(axis: Axes, rows: list[dict[str, Any]]) -> None:
    for name, colour in COLOURS.items():
        own = sorted((row["budget"], row["recall"]) for row in rows if row["contender"] == name)
        bars(axis, [100 * budget for budget, _ in own], [found for _, found in own], name, colour)
    ticks = sorted({100 * row["budget"] for row in rows})
    axis.set(xscale="log", xlabel="budget, % of the conversation's tokens", ylim=(0, 1))
    axis.minorticks_off()
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])


if __name__ == "__main__":
    main()

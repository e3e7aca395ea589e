"""`python -m bench.memory_plots`: draws docs/images/memory.png out of bench/results/memory/*.json, which are what the
study of `loreloop memory eval` gave. Bars are 95 % intervals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from bench.record import RESULTS

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "memory.png"
TITLES = {"locomo": "LoCoMo, two conversations", "beam": "BEAM, seven chats of about 100,000 tokens"}
COLOURS = {
    "memory": "C0",
    "memory, whole turns only": "C9",
    "uniform compression": "C2",
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
    drawn.savefig(PICTURE, dpi=110)


def against_budget(axis: Axes, rows: list[dict[str, Any]]) -> None:
    for name, colour in COLOURS.items():
        own = sorted((row["budget"], row["recall"]) for row in rows if row["contender"] == name)
        means = [found["mean"] for _, found in own]
        below = [found["mean"] - found["low"] for _, found in own]
        above = [found["high"] - found["mean"] for _, found in own]
        shares = [100 * budget for budget, _ in own]
        axis.errorbar(shares, means, yerr=[below, above], marker="o", capsize=2, label=name, color=colour)
    ticks = sorted({100 * row["budget"] for row in rows})
    axis.set(xscale="log", xlabel="budget, % of the conversation's tokens", ylim=(0, 1))
    axis.minorticks_off()
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])


if __name__ == "__main__":
    main()

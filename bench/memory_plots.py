"""`python -m bench.memory_plots`: draws docs/images/memory-*.png out of bench/results/memory/*.json, which are what
`loreloop memory eval --json` gave. Bars are 95 % intervals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from bench.record import RESULTS

Row = dict[str, Any]
Tables = dict[str, list[Row]]
IMAGES = Path(__file__).parents[1] / "docs" / "images"
BLIND, KNOWING = "not knowing the question", "knowing the question"
SHOWN = {
    "memory": ("memory", "C0"),
    "memory, whole turns only": ("memory, whole turns only", "C9"),
    "uniform compression": ("uniform compression", "C2"),
    "user's words, shortest first": ("user's words, shortest first", "C4"),
    "longest turns first": ("longest turns first", "C5"),
    "recency window": ("recency window", "C3"),
    "memory and BM25 retrieval of condensed turns, half each": ("memory and BM25, half each", "C0"),
    "BM25 retrieval of condensed turns": ("BM25 of condensed turns", "C1"),
    "MiniLM retrieval of condensed turns": ("MiniLM of condensed turns", "C6"),
}


def main() -> None:
    locomo, beam, synthetic = (
        json.loads((RESULTS / "memory" / f"{name}.json").read_text())["tables"]
        for name in ("locomo", "beam", "synthetic")
    )
    against_budget(locomo, "LoCoMo", IMAGES / "memory-locomo.png")
    against_budget(beam, "BEAM, 100,000 tokens", IMAGES / "memory-beam.png")
    against_length(synthetic, IMAGES / "memory-length.png")


def against_budget(tables: Tables, title: str, picture: Path) -> None:
    drawn, axes = plt.subplots(1, 2, figsize=(11, 4), sharey=True)
    for axis, table in zip(axes, (BLIND, KNOWING), strict=True):
        for name, (label, colour) in SHOWN.items():
            rows = [row for row in tables[table] if row["contender"] == name]
            if rows:
                line(axis, [100 * row["budget"] for row in rows], rows, label, colour)
        axis.set(xscale="log", title=f"{title}, {table}", xlabel="budget, % of the conversation's tokens", ylim=(0, 1))
        axis.set_xticks(ticks := sorted({100 * row["budget"] for row in tables[table]}))
        axis.set_xticklabels([f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
        axis.legend(fontsize=7)
    axes[0].set_ylabel("evidence recall")
    drawn.tight_layout()
    drawn.savefig(picture, dpi=110)


def against_length(tables: Tables, picture: Path) -> None:
    drawn, axis = plt.subplots(figsize=(5.5, 4))
    by_turns = {int(title.split()[1]): rows for title, rows in tables.items() if title.startswith("needles")}
    for name in ("memory", "recency window"):
        label, colour = SHOWN[name]
        found = [next(row for row in rows if row["contender"] == name) for rows in by_turns.values()]
        line(axis, list(by_turns), found, label, colour)
    axis.set(xscale="log", xlabel="turns", ylabel="needles that stand", ylim=(0, 1.05), title="needles at 2,048 tokens")
    axis.legend(fontsize=8)
    drawn.tight_layout()
    drawn.savefig(picture, dpi=110)


def line(axis: Axes, places: list[float] | list[int], rows: list[Row], label: str, colour: str) -> None:
    means = [row["recall"]["mean"] for row in rows]
    below = [row["recall"]["mean"] - row["recall"]["low"] for row in rows]
    above = [row["recall"]["high"] - row["recall"]["mean"] for row in rows]
    axis.errorbar(places, means, yerr=[below, above], marker="o", capsize=2, label=label, color=colour)


if __name__ == "__main__":
    main()

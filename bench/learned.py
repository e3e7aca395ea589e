"""`python -m bench.learned`: draws docs/images/memory-learned.png out of the records of `loreloop memory train`, which
are bench/results/memory-head.json and memory-refill.json.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import msgspec
from matplotlib.axes import Axes

from bench.record import RESULTS
from loreloop.memory.learning.course import Record

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "memory-learned.png"
SHOWN = {"head": ("needles", "consequences"), "refill": ("kept", "taken", "evidence")}  # measures of the exams
REWARD = {"head": "evidence that stands in the end", "refill": "content words kept in texts that are taken"}


def main() -> None:
    drawn, axes = plt.subplots(2, 3, figsize=(12, 6), layout="constrained")
    for row, part in zip(axes, ("head", "refill"), strict=True):
        record = msgspec.json.decode((RESULTS / f"memory-{part}.json").read_bytes(), type=Record)
        draw_lessons(row[0], record)
        draw_rewards(row[1], record)
        draw_exams(row[2], record)
    PICTURE.parent.mkdir(exist_ok=True)
    drawn.savefig(PICTURE, dpi=110)


def draw_lessons(axis: Axes, record: Record) -> None:
    axis.plot(range(1, len(record.losses) + 1), record.losses, marker="o", color="#2a6f97")
    axis.set(title=f"{record.part}: lessons", xlabel="step", ylabel="loss per token of the answer", ylim=(0, None))


def draw_rewards(axis: Axes, record: Record) -> None:
    for turns, colour in zip(
        sorted({one.turns for one in record.rewards}), ("#e9c46a", "#f4a261", "#c8553d"), strict=False
    ):
        steps = [(step, one.value) for step, one in enumerate(record.rewards, 1) if one.turns == turns]
        axis.plot(*zip(*steps, strict=True), marker="o", color=colour, label=f"{turns} turns")
    axis.set(title=f"{record.part}: rewards", xlabel="step", ylabel=REWARD[record.part], ylim=(0, 1.02))
    axis.legend(frameon=False)


def draw_exams(axis: Axes, record: Record) -> None:
    whens = [sitting.when for sitting in record.sittings]
    for measure in SHOWN[record.part]:
        found = [sitting.measures[measure] for sitting in record.sittings]
        below = [one.mean - one.low for one in found]
        above = [one.high - one.mean for one in found]
        axis.errorbar(whens, [one.mean for one in found], yerr=[below, above], marker="o", capsize=4, label=measure)
    axis.set(title=f"{record.part}: held out, 95 % over seeds", ylim=(0, 1.02))
    axis.legend(frameon=False)


if __name__ == "__main__":
    main()

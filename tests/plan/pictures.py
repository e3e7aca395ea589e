"""The pictures of docs/plan.md: `python -m tests.plan.pictures` draws them anew, as the planner has the figures now."""

from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from loreloop.plan.scaling import Point
from tests.plan.reports import TENTH, loop, tenth

IMAGES = Path(__file__).parents[2] / "docs" / "images"
PARTS = ("base", "trained numbers", "moments", "gradient")
MEASURES = {
    "tokens a second": lambda point: point.outcome.tokens_a_second,
    "share of the time that the trainer is idle": lambda point: point.outcome.trainer_idle,
    "share of the time that samplers are idle": lambda point: point.outcome.sampler_idle,
}


def label(title: str) -> str:
    """Behind a bar."""
    found, whole = tenth(title)[-1], tenth("full tuning")[-1]
    return f"{found:,.0f} GB, {100 * found / whole:.0f} %"


def end_of(points: list[Point], staleness: int) -> str:
    """What stands in the legend for a line: the staleness, and where the line ends."""
    last = [point for point in points if point.staleness == staleness][-1]
    return f"staleness {staleness}: {last.outcome.tokens_a_second:,.0f} on {last.n:,}"


def draw_tenth(axis: Axes) -> None:
    titles = list(TENTH)[::-1]
    left = [0.0] * len(titles)
    for number, part in enumerate(PARTS):
        sizes = [tenth(title)[number] for title in titles]
        axis.barh(titles, sizes, left=left, label=part)
        left = [start + size for start, size in zip(left, sizes, strict=True)]
    for place, title in enumerate(titles):
        axis.text(left[place] + 150, place, label(title), va="center")
    axis.set(xlabel="GB of Kimi K2 Thinking in one place", xlim=(0, 1.35 * max(left)))
    axis.legend(loc="center right")


def draw_loop(axes: list[Axes], points: list[Point]) -> None:
    sizes = sorted({point.n for point in points})
    for axis, (measure, value) in zip(axes, MEASURES.items(), strict=True):
        for staleness in sorted({point.staleness for point in points}):
            line = [point for point in points if point.staleness == staleness]
            name = end_of(points, staleness)
            axis.plot([point.n for point in line], [value(point) for point in line], marker="o", label=name)
        axis.set(xscale="log", title=measure, xlabel="H200")
        axis.set_xticks(sizes, [f"{size}" for size in sizes])
        axis.minorticks_off()
        axis.set_ylim(bottom=0)
    axes[0].legend(fontsize=8)


def main() -> None:
    # The same figures make the same file, and its words can be read and searched.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "plan"})
    drawn, axis = plt.subplots(figsize=(9, 2.8))
    draw_tenth(axis)
    drawn.tight_layout()
    drawn.savefig(IMAGES / "plan-tenth.svg", metadata={"Date": None})
    drawn, axes = plt.subplots(1, 3, figsize=(13, 3.8))
    draw_loop(list(axes), loop())
    drawn.tight_layout()
    drawn.savefig(IMAGES / "plan-loop.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()

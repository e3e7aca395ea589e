"""What the study found: means with 95 % bands over seeds, as a table, as JSON and as a picture.

Takes plain values.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib.pyplot as plt

# Student's t at 97.5 % for 1, 2, ... degrees of freedom: five seeds are too few for the normal's 1.96
STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13, 2.12, 2.11, 2.10)


@dataclass(frozen=True)
class Result:
    """The share of exam images that one method named correctly, after `shots` images a class (0: untuned)."""

    method: str
    shots: int
    seed: int
    share: float


@dataclass(frozen=True)
class Point:
    mean: float
    half_width: float  # of the 95 % band; 0 with a single seed


def point(shares: list[float]) -> Point:
    n = len(shares)
    if n < 2:
        return Point(shares[0], 0.0)
    student = STUDENT[min(n - 2, len(STUDENT) - 1)]  # beyond the table its last, a little too wide
    return Point(statistics.fmean(shares), student * statistics.stdev(shares) / n**0.5)


def curves(results: list[Result]) -> dict[str, dict[int, Point]]:
    """For each method its points by shots."""
    found: dict[str, dict[int, list[float]]] = {}
    for result in results:
        found.setdefault(result.method, {}).setdefault(result.shots, []).append(result.share)
    return {
        method: {shots: point(shares) for shots, shares in sorted(by_shots.items())}
        for method, by_shots in found.items()
    }


def table(results: list[Result]) -> str:
    by_method = curves(results)
    shots = sorted({result.shots for result in results})
    lines = ["| labelled images a class | " + " | ".join(map(str, shots)) + " |", "|---" * (len(shots) + 1) + "|"]
    for method, points in by_method.items():
        cells = (f"{points[k].mean:.3f} ± {points[k].half_width:.3f}" if k in points else "" for k in shots)
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def save(results: list[Result], folder: Path, title: str, chance: float) -> Path:
    """Writes `few-shot.json` and `few-shot.png`; gives the picture's path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "few-shot.json").write_text(json.dumps([asdict(result) for result in results], indent=0))
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for method, points in curves(results).items():
        shots = [k for k in points if k]
        means = [points[k].mean for k in shots]
        low = [points[k].mean - points[k].half_width for k in shots]
        high = [points[k].mean + points[k].half_width for k in shots]
        if not shots:
            axes.axhline(points[0].mean, linestyle="--", color="#888888", linewidth=1, label=method)
            continue
        (line,) = axes.plot(shots, means, marker="o", markersize=4, label=method)
        axes.fill_between(shots, low, high, alpha=0.15, color=line.get_color(), linewidth=0)
    axes.axhline(chance, linestyle=":", color="#888888", linewidth=1, label="chance")
    axes.set_xscale("log", base=2)
    ticks = sorted({result.shots for result in results if result.shots})
    axes.set_xticks(ticks, [str(k) for k in ticks])
    axes.set(xlabel="labelled images a class", ylabel="share named correctly", ylim=(0, 1.02), title=title)
    axes.legend(frameon=False, fontsize=8)
    axes.grid(alpha=0.3)
    figure.savefig(folder / "few-shot.png", dpi=120)
    plt.close(figure)
    return folder / "few-shot.png"

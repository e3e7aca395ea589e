"""The metrics of a job as the file that it leaves: one line a step, in OpenAI's columns where it has some."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from loreloop.protocol.jobs import JobKind, Metrics

VALIDATED = ("valid_loss", "valid_mean_token_accuracy")
OPENAI_NAMES = {"train_mean_token_accuracy": "train_accuracy"}
COLUMNS: dict[JobKind, tuple[str, ...]] = {
    "supervised": ("train_loss", "train_accuracy", *VALIDATED),
    "dpo": ("train_loss", "train_accuracy", *VALIDATED),
    "kto": ("train_loss", "train_accuracy", *VALIDATED),
    "reinforcement": ("train_reward_mean", "valid_reward_mean"),
}


def as_csv(kind: JobKind, steps: Sequence[tuple[int, Metrics]]) -> bytes:
    """The columns of the kind of job first, empty where a step has none of it, then whatever else was measured."""
    steps = [
        (step, {OPENAI_NAMES.get(name, name): value for name, value in metrics.items()}) for step, metrics in steps
    ]
    usual = COLUMNS[kind]
    others = dict.fromkeys(name for _, metrics in steps for name in metrics if name not in usual)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["step", *usual, *others])
    for step, metrics in steps:
        writer.writerow([step, *(metrics.get(name, "") for name in (*usual, *others))])
    return text.getvalue().encode()

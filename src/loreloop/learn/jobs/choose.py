"""Which hyperparameters a job gets that its request leaves to the server. Pure; the rules are in docs/jobs.md.

Epochs, batch size and rate follow the rules of `learn/auto.py`, which `loreloop train` has as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from loreloop.learn.auto import Asked
from loreloop.learn.auto import chosen as auto_chosen
from loreloop.protocol.jobs import JobKind

METHODS: dict[JobKind, str] = {"supervised": "sft", "dpo": "dpo", "kto": "kto", "reinforcement": "grpo"}
# Of reinforcement one number cannot be chosen by the size of the file: how often to look at held-out tasks.
EVALUATIONS = 10  # over the whole job
MOST_ANSWER_TOKENS = {"low": 64, "medium": 256, "default": 256, "high": 1024}  # by reasoning_effort
BETA = 0.1  # as the paper on DPO has it


class Decided(msgspec.Struct, frozen=True):
    """Hyperparameters by the names of OpenAI's API, and the learning rate that they come to."""

    hyperparameters: dict[str, Any]
    learning_rate: float


def chosen(kind: JobKind, asked: dict[str, Any], n_examples: int, folder: Path) -> Decided:
    """Every hyperparameter of the kind: those of the request as they are, the others by rule; `folder` is the base
    model's."""
    given = {name: value for name, value in asked.items() if value != "auto"}
    multiplier = float(given.get("learning_rate_multiplier", 1.0))
    wanted = Asked(epochs=given.get("n_epochs"), batch_size=given.get("batch_size"), multiplier=multiplier)
    found = auto_chosen(METHODS[kind], n_examples, folder, wanted)
    usual: dict[str, Any] = {
        "n_epochs": found.epochs,
        "batch_size": found.batch_size,
        "learning_rate_multiplier": multiplier,
    }
    if kind in ("dpo", "kto"):
        usual["beta"] = BETA
    if kind == "reinforcement":
        n_steps = found.epochs * -(-n_examples // found.batch_size)
        usual |= {"compute_multiplier": 1.0, "eval_interval": max(1, n_steps // EVALUATIONS), "eval_samples": 1}
        effort = given.get("reasoning_effort", "default")
        usual |= {"reasoning_effort": effort, "max_completion_tokens": MOST_ANSWER_TOKENS[effort]}
    return Decided(usual | given, found.learning_rate)

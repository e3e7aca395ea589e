"""Which hyperparameters a job gets that its request leaves to the server. Pure."""

from __future__ import annotations

from typing import Any

from loreloop.protocol.jobs import JobKind


def chosen(kind: JobKind, asked: dict[str, Any], n_examples: int) -> dict[str, Any]:
    """Every hyperparameter of the kind, those of the request as they are and the others by rule."""
    auto: dict[str, Any] = {
        "n_epochs": 3,
        "batch_size": max(1, min(32, n_examples // 4)),
        "learning_rate_multiplier": 1.0,
    }
    return auto | {name: value for name, value in asked.items() if value != "auto"}

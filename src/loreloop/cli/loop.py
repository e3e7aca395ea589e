"""`loreloop loop`: a deployed model that keeps learning from what its users say."""

from __future__ import annotations

import click


@click.group()
def loop() -> None:
    """Let a deployed model learn from its users' feedback, and watch, steer or undo what it learns."""

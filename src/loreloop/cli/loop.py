"""`loreloop loop`: the commands of the closed loop, from what was answered to what answers next.

This file only holds the group; each command is a file of its own.
"""

from __future__ import annotations

import click

from loreloop.cli.loop_review import review
from loreloop.cli.loop_signs import signs
from loreloop.cli.loop_turns import turns


@click.group()
def loop() -> None:
    """Learn from use: see what deployments answered, label it, train on it, promote what is better."""


for verb in (turns, review, signs):
    loop.add_command(verb)

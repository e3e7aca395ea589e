"""The flags by which `loreloop deploy set` says what a deployment keeps of its answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

RECORDING = (
    click.option("--record/--no-record", "record", default=None, help="Keep every chat turn that it answers."),
    click.option(
        "--retention-days",
        type=click.FloatRange(0, 36500, min_open=True),
        help="How long turns are kept; 30 unless said.",
    ),
    click.option(
        "--quota-mib",
        type=click.IntRange(1, 1 << 20),
        help="How much is kept; the oldest turns go first. 1024 unless said.",
    ),
    click.option(
        "--redact",
        metavar="KIND,KIND",
        help="What is taken out of turns before they are kept: email, phone, card, iban, ip, key; '' for nothing.",
    ),
    click.option("--redact-matching", "expressions", multiple=True, help="An expression of RE2 to take out, too."),
    click.option(
        "--consent", type=click.Choice(["yes", "no"]), help="What holds for requests that do not say; yes unless said."
    ),
)


def recording_options(command: Callable[..., None]) -> Callable[..., None]:
    """The flags that say what a deployment keeps of its answers."""
    for option in reversed(RECORDING):
        command = option(command)
    return command


def recorded(flags: dict[str, Any]) -> dict[str, Any]:
    """The flags of recording that were given, as fields of a body."""
    kinds, expressions, consent = flags.pop("redact"), flags.pop("expressions"), flags.pop("consent")
    given = {name: value for name, value in flags.items() if value is not None}
    if kinds is not None or expressions:
        given["redact"] = [kind.strip() for kind in (kinds or "").split(",") if kind.strip()] + list(expressions)
    return given if consent is None else given | {"consent": consent == "yes"}

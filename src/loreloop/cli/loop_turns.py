"""`loreloop loop turns`: what a deployment has answered, and what became of each answer, with the reason."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from loreloop.cli.loop_server import counts_of, feedback_of, server_of, turns_of
from loreloop.cli.models import DATA
from loreloop.cli.tables import JSON, LIMIT, Moment, show

if TYPE_CHECKING:
    from loreloop.protocol.episodes import Turn

WHY = {
    "trainable": "there is feedback, and a candidate may learn from it",
    "waiting": "nobody has said anything about it yet",
    "side": "it was marked as a side turn, such as a title or a summary",
    "no_consent": "its request or its deployment gave no consent",
    "unfinished": "its reader left before its end, or its last call was cut off",
    "dropped": "the recorder had no room when it came",
    "expired": "it was kept as long as the deployment keeps turns",
    "mixed": "two revisions answered its episode, so it compares nothing",
    "used": "a candidate was trained on it",
}
SHOWN = 60  # characters of a text


@click.command("turns")
@click.argument("name")
@click.option("--fate", type=click.Choice(sorted(WHY)), help="Only turns of which this became.")
@click.option("--user", help="Only turns of this user.")
@LIMIT
@DATA
@JSON
def turns(name: str, fate: str | None, user: str | None, limit: int, data_dir: str, *, as_json: bool) -> None:
    """Show the newest turns of the deployment NAME, and how many there are of each fate."""
    from loreloop.protocol.feedback_rules import standing

    query = {key: value for key, value in (("fate", fate), ("user", user)) if value is not None}
    with server_of(data_dir) as client:
        found = [*turns_of(client, name, **query)][-limit:]
        n_said = Counter(one.target_id for one in standing(feedback_of(client, name)))
        counts = counts_of(client, name)
    show([row_of(turn, n_said[turn.id]) for turn in reversed(found)], as_json, empty="No such turns yet.")
    if not as_json:
        click.echo("\n" + "\n".join(told_counts(counts)), err=True)


def row_of(turn: Turn, n_said: int) -> dict[str, Any]:
    """A turn as a row of the table."""
    return {
        "id": turn.id,
        "created": Moment(turn.created),
        "user": turn.person.user,
        "fate": turn.fate if turn.candidate is None else f"{turn.fate} in {turn.candidate}",
        "feedback": n_said,
        "asked": short(asked(turn)),
        "answered": short(text_of(turn.answer)),
    }


def told_counts(counts: dict[str, Any]) -> list[str]:
    """A line for each fate that there is, with what it means; other numbers as they are."""
    fates = counts.get("fates", counts)
    return [
        f"{n:>8,} {fate}: {WHY.get(fate, '')}".rstrip(": ") for fate, n in fates.items() if isinstance(n, int) and n
    ]


def asked(turn: Turn) -> str:
    """What was asked last."""
    users = [message for message in turn.messages if message.get("role") == "user"]
    return text_of(users[-1]) if users else ""


def text_of(message: dict[str, Any]) -> str:
    """A message's text; images and calls are named where they stand."""
    content = message.get("content") or ""
    if isinstance(content, list):
        content = " ".join(part.get("text") or f"[{part.get('type', 'part')}]" for part in content)
    calls = [f"[calls {call.get('function', {}).get('name', 'a tool')}]" for call in message.get("tool_calls") or ()]
    return " ".join([content, *calls]).strip()


def short(text: str) -> str:
    """A text on one line, cut."""
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else f"{line[:SHOWN]}…"

"""`loreloop loop review`: unlabelled turns one after another, and one key for each label.

The labels carry the tag `golden`: what is measured with them is never trained on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from loreloop.cli.loop_server import feedback_of, server_of, turns_of
from loreloop.cli.loop_turns import text_of
from loreloop.cli.models import DATA
from loreloop.cli.operator import checked
from loreloop.cli.who import operator

if TYPE_CHECKING:
    from loreloop.protocol.episodes import Turn

HELP = (
    "u good · d bad · 1-5 how good · e write the right answer · n a note, then a label · s skip · b take the last "
    "label back · q end"
)
FATES = ("waiting", "trainable", "used", "mixed")  # of which a label tells something
LONGEST_SHOWN = 4000  # characters of a message


@click.command("review")
@click.argument("name")
@click.option("--who", help="In whose name the labels are given.  [default: the user of this shell]")
@click.option("--all", "every", is_flag=True, help="Also turns on which others have given feedback.")
@DATA
def review(name: str, who: str | None, every: bool, data_dir: str) -> None:
    """Label the turns of the deployment NAME by keyboard, the oldest first; the labels make its golden set."""
    with server_of(data_dir) as client:
        desk = Desk(client, who or operator())
        n_seen = 0
        for turn in unlabelled(client, name, desk.who, every=every):
            n_seen += 1
            show_turn(turn)
            if not desk.label(turn):
                break
    click.echo(f"{desk.n_given} labels on {n_seen} turns." if n_seen else "No turn waits for a label.")


def unlabelled(client: Any, name: str, who: str, *, every: bool) -> Iterator[Turn]:
    """Turns on which no human has given feedback; with `every`, those on which `who` has not."""
    from loreloop.protocol.feedback_rules import standing

    humans = (one for one in standing(feedback_of(client, name)) if one.source == "human")
    labelled = {one.target_id for one in humans if not every or one.who == who}
    for turn in turns_of(client, name):
        if turn.fate in FATES and turn.answer and turn.id not in labelled:
            yield turn


class Desk:
    """One sitting: what was given, so that it can be taken back."""

    def __init__(self, client: Any, who: str) -> None:
        self.client, self.who = client, who
        self.given: list[str] = []

    @property
    def n_given(self) -> int:
        """Labels that were given and not taken back."""
        return len(self.given)

    def label(self, turn: Turn) -> bool:
        """Asks for keys until the turn is labelled or skipped; False where that is the end."""
        why = ""
        while True:
            key = click.getchar()
            match key:
                case "q" | "\x1b":
                    return False
                case "s" | " ":
                    return True
                case "u" | "d":
                    self.give(turn, "thumb", key == "u", why)
                    return True
                case "1" | "2" | "3" | "4" | "5":
                    self.give(turn, "score", (int(key) - 1) / 4, why)
                    return True
                case "n":
                    why = click.prompt("Note", default="", show_default=False)
                    click.echo(HELP)
                case "e" if edited := edit(turn):
                    self.give(turn, "demonstration", edited, why)
                    return True
                case "b":
                    self.take_back()
                case _:
                    click.echo(HELP)

    def give(self, turn: Turn, metric: str, value: bool | float | str, why: str) -> None:
        """Keeps a label."""
        from loreloop.protocol.feedback import GOLDEN_TAG

        body: dict[str, Any] = {"target_id": turn.id, "metric": metric, "value": value, "who": self.who, "why": why}
        body |= {"source": "human", "tags": {GOLDEN_TAG: "1"}}
        self.given.append(checked(self.client.post("/loop/v1/feedback", json=body)).json()["id"])
        click.echo(f"  {metric} {value if not isinstance(value, str) else 'kept'}")

    def take_back(self) -> None:
        """Retracts the last label of this sitting."""
        if not self.given:
            click.echo("There is no label of this sitting to take back.")
            return
        checked(self.client.delete(f"/loop/v1/feedback/{self.given.pop()}"))
        click.echo("The last label is taken back; its turn comes again in the next review.")


def show_turn(turn: Turn) -> None:
    """Prints the conversation and the answer, and the keys."""
    click.echo(f"\n── {turn.id} · {turn.person.user or 'no user'} · {turn.revision or turn.base_model} ──")
    for message in turn.messages:
        click.echo(f"{message.get('role', '?')}: {cut(text_of(message))}")
    click.secho(f"answer: {cut(text_of(turn.answer))}", bold=True)
    click.echo(HELP)


def edit(turn: Turn) -> str | None:
    """The right answer, written in the editor of this shell; None where nothing was changed."""
    before = text_of(turn.answer)
    after = (click.edit(before) or "").strip()
    return after if after and after != before.strip() else None


def cut(text: str) -> str:
    """A text as far as a screen takes it, without characters that would move the cursor."""
    plain = "".join(letter if letter.isprintable() or letter == "\n" else "·" for letter in text)
    return plain if len(plain) <= LONGEST_SHOWN else f"{plain[:LONGEST_SHOWN]}… ({len(plain) - LONGEST_SHOWN} more)"

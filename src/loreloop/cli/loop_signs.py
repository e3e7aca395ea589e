"""`loreloop loop signs`: what behaviour says of a deployment's answers, shown, and sent as feedback where wished.

How it is found is the business of `learn/loop/implicit.py`.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from loreloop.cli.loop_server import server_of, turns_of
from loreloop.cli.models import DATA
from loreloop.cli.operator import checked
from loreloop.cli.tables import JSON, show

if TYPE_CHECKING:
    from loreloop.protocol.feedback import Feedback

KINDS = ("rephrase", "abandon", "copy")
SENT = ("id", "target_id", "metric", "value", "source", "who", "why", "tags")  # fields of a statement
TOO_FAST, TAKEN = 429, 409


@click.command("signs")
@click.argument("name")
@click.option("--kind", "kinds", multiple=True, type=click.Choice(KINDS), help="Only these kinds.  [default: all]")
@click.option("--send", is_flag=True, help="Give them as feedback of the source `implicit`.")
@DATA
@JSON
def signs(name: str, kinds: tuple[str, ...], send: bool, data_dir: str, as_json: bool) -> None:
    """Show who asked the deployment NAME again in other words, left it open, or used its text.

    These are guesses. Sent twice they count once.
    """
    from loreloop.learn.loop.implicit import KINDS as ALL
    from loreloop.learn.loop.implicit import signals

    with server_of(data_dir) as client:
        found = signals(turns_of(client, name), time.time(), kinds=[kind for kind in ALL if not kinds or kind in kinds])
        for said in found if send else ():
            give(client, said)
    rows: list[dict[str, Any]] = [
        {"turn": said.target_id, "sign": said.tags["sign"], "accepted": said.value, "user": said.who, "why": said.why}
        for said in found
    ]
    show(rows, as_json, empty="Nothing that people did speaks for or against an answer yet.")


def give(client: Any, said: Feedback) -> None:
    """Sends one statement, and waits where the server asks for that."""
    body = {field: getattr(said, field) for field in SENT}
    while (answer := client.post("/loop/v1/feedback", json=body)).status_code == TOO_FAST:
        time.sleep(float(answer.headers.get("retry-after", "1")))
    # Under its id the turn has this sign already, for a reason in other words.
    if answer.status_code != TAKEN:
        checked(answer)

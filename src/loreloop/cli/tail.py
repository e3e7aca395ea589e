"""`loreloop tail`: what happens on the running server, a line each, until Ctrl-C."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import click

from loreloop.cli.models import DATA
from loreloop.cli.operator import KEY_SECONDS, checked, no_server, running_server_of
from loreloop.cli.runs import bare
from loreloop.cli.tables import JSON, harmless

HOLD_SECONDS = 10  # that the server may wait for something to tell
# A key of a command line expires, so another one is asked for long before.
ONE_KEY_SECONDS = KEY_SECONDS / 2


@click.command()
@click.argument("run_id", metavar="[RUN]", default="")
@click.option("--last", default=10, show_default=True, type=click.IntRange(0, 1000), help="Lines of before.")
@click.option("--no-follow", is_flag=True, help="End behind the last lines.")
@DATA
@JSON
def tail(run_id: str, last: int, no_follow: bool, data_dir: str, as_json: bool) -> None:
    """Follow what happens: requests, training steps with their losses, samples, engines and jobs, one line each.

    With RUN only what names it: a training run, a session, a job or a model.
    """
    for one in _happenings(data_dir, bare(run_id), last, follow=not no_follow):
        _print(one, as_json)


def _happenings(data_dir: str, of: str, last: int, *, follow: bool) -> Iterator[dict[str, Any]]:
    after: int | None = None
    while True:
        with running_server_of(data_dir) as client:
            if client is None:
                raise no_server(data_dir)
            until = time.monotonic() + ONE_KEY_SECONDS
            while time.monotonic() < until:
                # Without a number it is asked for the last ones, and with one for what comes.
                asked = {"of": of} | ({"limit": max(last, 1)} if after is None else {"after": after})
                found = checked(client.get("/loop/v1/happenings", params={**asked, "seconds": HOLD_SECONDS})).json()
                if found["missed"]:
                    click.echo("… some were missed: more happened than the server keeps …", err=True)
                yield from found["happenings"] if after is not None or last else []
                after = found["last"]
                if not follow:
                    return


def _print(one: dict[str, Any], as_json: bool) -> None:
    import json

    if as_json:
        click.echo(json.dumps(one))
        return
    at = time.strftime("%H:%M:%S", time.localtime(one["at"]))
    # The name of a request's route stands in its text.
    about = "" if one["kind"] == "request" else f"{one['of']}  "
    click.echo(f"{at}  {one['kind']:9}  {harmless(about + one['text'])}")

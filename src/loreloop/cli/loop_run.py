"""The verbs of `loreloop loop` that run a loop and steer it: init, run, status, pause, promote, rollback, report."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loreloop.cli.tables import JSON, Moment, show

if TYPE_CHECKING:
    from loreloop.learn.loop.config import Loaded

FILE = click.argument("file", type=click.Path(path_type=Path, dir_okay=False), default="loop.toml")
TEMPLATE = """\
# A loop over one deployment; docs/loop.md has every field. What is left out has its default.
deployment = "{deployment}"
url = "{url}"
key_variable = "LORELOOP_API_KEY"   # the environment variable that holds the key

[triggers]
feedback = 20                       # new statements that begin a cycle; 0: none do
# nightly = "03:30"
# zone = "Europe/Berlin"

[training]
methods = ["sft", "kto"]            # corrections are imitated, then thumbs are learned from

[canary]
percent = 10.0
"""


@click.command()
@FILE
@click.option("--deployment", required=True, help="The deployment that shall learn.")
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="Its server.")
def init(file: Path, deployment: str, url: str) -> None:
    """Write a loop.toml to begin with."""
    from loreloop.learn.loop.config import config_of
    from loreloop.protocol.errors import Conflict

    config_of({"deployment": deployment, "url": url}, "--deployment or --url")
    if file.exists():
        raise Conflict(f"{file} is there already; name another file, or edit that one.")
    file.write_text(TEMPLATE.format(deployment=deployment, url=url))
    click.echo(f"{file} is written; `loreloop loop run {file}` runs it.")


@click.command()
@FILE
@click.option("--now", "asked", is_flag=True, help="Begin a cycle at once, whatever the triggers say.")
@click.option("--cycles", type=click.IntRange(1), help="End after so many cycles; without it, run until stopped.")
def run(file: Path, asked: bool, cycles: int | None) -> None:
    """Run the loop of FILE until it is stopped; started again, it goes on where it was."""
    import asyncio
    import warnings

    loaded = _loaded(file)
    os.environ.setdefault("TINKER_TELEMETRY", "0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # what the SDK's next version will change
        asyncio.run(_run(loaded, asked, cycles))


async def _run(loaded: Loaded, asked: bool, cycles: int | None) -> None:
    from loreloop.learn.loop.assembly import opened
    from loreloop.learn.loop.running import Running, run_anew
    from loreloop.learn.loop.state import LoopFolder
    from loreloop.learn.refusals import in_our_words

    with LoopFolder(loaded.folder).locked(), in_our_words("what the loop needs"):
        running = Running(cycles=cycles, tell=lambda said: click.echo(said, err=True))
        await run_anew(lambda: opened(loaded), running, asked=asked)


@click.command()
@FILE
@JSON
def status(file: Path, as_json: bool) -> None:
    """Show where a loop stands, and why nothing was promoted yet."""
    from loreloop.learn.loop.by_hand import status_of
    from loreloop.learn.loop.state import LoopFolder

    _print(status_of(LoopFolder(_loaded(file).folder)), as_json)


@click.command()
@FILE
@click.option("--off", is_flag=True, help="Let the loop go on.")
@JSON
def pause(file: Path, off: bool, as_json: bool) -> None:
    """Begin no cycle and promote nothing until it is taken back; a harmful candidate is still rolled back."""
    from loreloop.learn.loop.state import LoopFolder

    LoopFolder(_loaded(file).folder).pause(not off)
    _print({"paused": not off}, as_json)


@click.command()
@FILE
@JSON
def promote(file: Path, as_json: bool) -> None:
    """Let the candidate that is being tried answer everybody, without waiting for evidence."""
    from loreloop.learn.loop import by_hand

    _by_hand(file, as_json, by_hand.promote)


@click.command("try")
@click.argument("target")
@click.argument("weights")
@FILE
@JSON
def try_weights(target: str, weights: str, file: Path, as_json: bool) -> None:
    """Let the loop try weights that were made elsewhere: TARGET for sampling, WEIGHTS the saved state behind it."""
    from loreloop.learn.loop.by_hand import propose
    from loreloop.learn.loop.state import LoopFolder

    propose(LoopFolder(_loaded(file).folder), target, weights)
    _print({"proposed": target}, as_json)


@click.command()
@FILE
@JSON
def retrain(file: Path, as_json: bool) -> None:
    """Begin a cycle at once whose candidate starts where the loop began, without persons who were deleted since."""
    from loreloop.learn.loop import by_hand
    from loreloop.learn.loop.state import LoopFolder

    by_hand.retrain(LoopFolder(_loaded(file).folder))
    _print({"retraining": True}, as_json)


@click.command()
@FILE
@JSON
def rollback(file: Path, as_json: bool) -> None:
    """Let the champion answer everybody again; where no candidate is tried, the champion before it."""
    from loreloop.learn.loop import by_hand

    _by_hand(file, as_json, by_hand.roll_back)


@click.command()
@FILE
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), default="loop.html", show_default=True)
@JSON
def report(file: Path, out: Path, as_json: bool) -> None:
    """Write a page that shows satisfaction by revision over time, the guards and every decision."""
    from loreloop.learn.loop.assembly import door_of
    from loreloop.learn.loop.report import page_of
    from loreloop.learn.loop.state import LoopFolder

    loaded = _loaded(file)
    door = door_of(loaded)
    declared = door.metrics()
    page = page_of(loaded.config, LoopFolder(loaded.folder), door, declared.built_in | declared.metrics)
    out.write_text(page, encoding="utf-8")
    _print({"report": str(out)}, as_json)


@click.command()
@FILE
@JSON
def decisions(file: Path, as_json: bool) -> None:
    """Show every decision of a loop, the oldest first."""
    import msgspec

    from loreloop.learn.loop.state import LoopFolder

    found = LoopFolder(_loaded(file).folder).decisions()
    rows: list[dict[str, Any]] = [
        {"cycle": one.cycle, "stage": one.stage, "verdict": one.verdict, "at": Moment(one.at), "sentence": one.sentence}
        | ({"numbers": msgspec.to_builtins(one.numbers)} if as_json else {})
        for one in found
    ]
    show(rows, as_json, empty="No decisions yet.")


def _by_hand(file: Path, as_json: bool, change: Any) -> None:
    from loreloop.learn.loop.assembly import door_of
    from loreloop.learn.loop.state import LoopFolder

    loaded = _loaded(file)
    target = change(LoopFolder(loaded.folder), door_of(loaded))
    _print({"deployment": loaded.config.deployment, "target": target}, as_json)


def _loaded(file: Path) -> Loaded:
    """The settings. The packages that learning needs are asked for first."""
    from loreloop.protocol.errors import BadRequest

    try:
        import tinker
    except ImportError as error:
        raise BadRequest(f"A loop needs {error.name}: pip install 'loreloop[learn]'.") from None
    del tinker
    from loreloop.learn.loop.config import load

    return load(file)


def _print(found: dict[str, Any], as_json: bool) -> None:
    import json

    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    for name, value in found.items():
        if not isinstance(value, dict):
            click.echo(f"{name:<12} {'-' if value is None else value}")


VERBS = (init, run, status, pause, promote, retrain, rollback, report, decisions, try_weights)

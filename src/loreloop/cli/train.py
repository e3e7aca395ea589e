"""`loreloop train`: one command for each way to learn, made of the settings that it has.

A command reads its files, runs against a server until it is done or stopped, and keeps in its folder what it takes to
go on. A new way to learn needs its settings in `learn/settings.py` and its row in `learn/methods.py`, nothing here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from loreloop.cli.chat import SERVER_KEY, SERVER_URL
from loreloop.cli.models import DATA_FOLDER
from loreloop.cli.train_options import AUTO, check_picture, options_of, read_config
from loreloop.learn.plan import Plan
from loreloop.learn.settings import SETTINGS, RewardSettings, Settings

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
REGISTERED = "Where the server of `--tools mcp:NAME` is registered."
TEXTS = click.Path(exists=True, file_okay=False, path_type=Path)


@click.group()
def train() -> None:
    """Teach a model on a running server, from a file of examples."""


def command_of(name: str, settings: type[Settings]) -> click.Command:
    """The command of one way to learn."""

    def callback(**given: Any) -> None:
        from loreloop.cli.train_run import run

        run(name, settings, given)

    about = settings.__doc__ or ""
    # The group's list shows the whole first sentence, where the library would cut it off.
    return click.Command(
        name,
        params=[*common(settings), *options_of(settings)],
        callback=callback,
        help=about,
        short_help=about.partition("\n")[0],
    )


def common(settings: type[Settings]) -> list[click.Parameter]:
    """The options that all these commands have; those that learn from rewards may do without a file."""
    has_tasks = issubclass(settings, RewardSettings)
    holder = SERVER_KEY(SERVER_URL(click.Command("holder", callback=lambda: None)))
    return [
        click.Option(["--model"], required=True, help="The base model, by its name on the server."),
        click.Option(
            ["--data"],
            required=not has_tasks,
            type=FILE,
            help="What to learn from, one JSON object a line."
            + (" Without it, the tasks of --environment." if has_tasks else ""),
        ),
        click.Option(["--eval", "held_out"], type=FILE, help="Examples that are looked at and never learned from."),
        click.Option(
            ["--out"],
            required=True,
            type=click.Path(path_type=Path, file_okay=False),
            help="Where the run is kept; the same folder resumes it.",
        ),
        click.Option(
            ["--plot"],
            type=click.Path(path_type=Path, dir_okay=False),
            callback=check_picture,
            help="Draw all measures into this file (PNG, SVG, PDF).",
        ),
        click.Option(["--suffix"], default="", help="Begins the names of the saved weights, behind the way to learn."),
        click.Option(
            ["--texts"],
            type=TEXTS,
            help="A folder with the model's tokenizer and template.  [default: asked of the server]",
        ),
        *holder.params,
        *([click.Option(["--data-folder"], default=DATA_FOLDER, show_default=True, help=REGISTERED)] * has_tasks),
        click.Option(
            ["--config"],
            type=FILE,
            is_eager=True,
            expose_value=False,
            callback=read_config,
            help="A TOML file with values for these options, by their names.",
        ),
        *options_of(Plan, left_out=("base_model", "name"), auto=AUTO),
    ]


for _name, _settings in SETTINGS.items():
    train.add_command(command_of(_name, _settings))

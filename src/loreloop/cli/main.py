"""The command line: verbs, and what becomes of an error at its top."""

from __future__ import annotations

import sys
import traceback

import click

from loreloop import __version__
from loreloop.cli.chat import chat
from loreloop.cli.demo import demo
from loreloop.cli.deploy import deploy
from loreloop.cli.keys import keys
from loreloop.cli.memory import memory
from loreloop.cli.models import models
from loreloop.cli.serve import serve
from loreloop.cli.tools import tools


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Train, serve and keep improving language models with LoRA, on your own machine."""


for verb in (serve, demo, models, keys, deploy, tools, chat, memory):
    cli.add_command(verb)


def main() -> None:
    """Exit code 2 for misuse, 1 for a failure; a traceback only for faults of ours."""
    from loreloop.protocol.errors import LoreloopError

    try:
        cli()
    except LoreloopError as error:
        click.echo(f"Error: {error.message}", err=True)
        sys.exit(1)
    except Exception:
        traceback.print_exc()
        click.echo("This is a fault of loreloop's own; please report it with the lines above.", err=True)
        sys.exit(1)

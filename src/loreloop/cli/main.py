"""The command line: verbs, and what becomes of an error at its top."""

from __future__ import annotations

import errno
import signal
import sys
import traceback
from types import FrameType, TracebackType
from typing import NoReturn

import click

from loreloop import __version__
from loreloop.cli.adapters import export_model, import_adapter
from loreloop.cli.chat import chat
from loreloop.cli.checkpoints import checkpoints
from loreloop.cli.demo import demo
from loreloop.cli.deploy import deploy
from loreloop.cli.doctor import doctor
from loreloop.cli.files import files
from loreloop.cli.jobs import jobs
from loreloop.cli.keys import keys
from loreloop.cli.loop import loop
from loreloop.cli.loop_demo import demo as loop_demo
from loreloop.cli.loop_review import review
from loreloop.cli.loop_run import VERBS
from loreloop.cli.loop_signs import signs
from loreloop.cli.loop_turns import turns
from loreloop.cli.memory import memory
from loreloop.cli.model_care import remove_model, verify_models
from loreloop.cli.model_check import check_model
from loreloop.cli.models import models
from loreloop.cli.persons import persons
from loreloop.cli.plan import plan
from loreloop.cli.ps import ps
from loreloop.cli.repair import repair
from loreloop.cli.runs import runs
from loreloop.cli.serve import serve
from loreloop.cli.status import status
from loreloop.cli.tail import tail
from loreloop.cli.tools import tools
from loreloop.cli.train import train

# What the system refuses for reasons that lie with the machine, or with the path that was given.
NOT_OURS = {
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.EIO,
}


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Train, serve and keep improving language models with LoRA, on your own machine."""


VERBS_IN_ORDER = (
    serve,
    status,
    ps,
    tail,
    doctor,
    demo,
    models,
    keys,
    runs,
    checkpoints,
    repair,
    files,
    jobs,
    deploy,
    persons,
    tools,
    chat,
    memory,
    plan,
    train,
    loop,
)
for verb in VERBS_IN_ORDER:
    cli.add_command(verb)
for verb in (*VERBS, loop_demo, turns, review, signs):
    loop.add_command(verb)
for verb in (check_model, remove_model, verify_models, import_adapter, export_model):
    models.add_command(verb)


def main() -> None:
    """Exit code 2 for misuse, 1 for a failure, 130 and 143 where Ctrl-C and SIGTERM ended it, as shells have it; a
    traceback only for faults of ours."""
    # By a hook and not by another `except`, so that errors keep the way out and the exit code that Python gives them.
    sys.excepthook = tell
    from loreloop.protocol.errors import LoreloopError, WrongSettings

    signal.signal(signal.SIGTERM, _end)  # so that nothing half made is left, as after Ctrl-C
    try:
        code = cli.main(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.Abort as error:  # what the library makes of Ctrl-C, and of an input that ends at a question
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the interpreter's own end takes a moment
        interrupted = isinstance(error.__context__, KeyboardInterrupt)
        click.echo("Stopped." if interrupted else "Not done.", err=True)
        sys.exit(130 if interrupted else 1)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except LoreloopError as error:
        click.echo(f"Error: {error.message}", err=True)
        sys.exit(2 if isinstance(error, WrongSettings) else 1)


def tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What is printed of an error that nobody caught; the interpreter then ends with the exit code 1."""
    if explanation := circumstances(error):
        click.echo(f"Error: {explanation}", err=True)
        return
    traceback.print_exception(kind, error, trace)
    # Ctrl-C and the like are no faults.
    if isinstance(error, Exception):
        click.echo("This is a fault of loreloop's own; please report it with the lines above.", err=True)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def circumstances(error: BaseException) -> str | None:
    """What is wrong with the machine, where it is that and not a fault of ours."""
    import sqlite3

    if isinstance(error, OSError) and error.errno in NOT_OURS:
        return f"{error.filename or 'The system'}: {error.strerror}."
    cause = getattr(error, "orig", None)  # of the database's library
    if isinstance(cause, sqlite3.OperationalError):
        return f"The database of the data folder cannot be used: {cause}."
    return None

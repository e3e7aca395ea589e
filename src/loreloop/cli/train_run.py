"""One run of `loreloop train`, from its options to the paths of what was learned."""

from __future__ import annotations

import asyncio
import shlex
import signal
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from loreloop import __version__
from loreloop.cli.models import DATA_FOLDER
from loreloop.cli.train_options import AUTO, flag_of
from loreloop.cli.train_record import Folder, Record, sha256
from loreloop.learn.auto import Asked, chosen
from loreloop.learn.plan import Plan
from loreloop.learn.settings import RewardSettings, Settings
from loreloop.protocol.errors import BadRequest

if TYPE_CHECKING:
    from rich.console import Console

    from loreloop.learn.methods import Order
    from loreloop.learn.runner import Ending, Wish


@dataclass(frozen=True)
class Ended:
    """How a run ended, the path of its newest weights, if there are any, and the signal that paused it."""

    ending: Ending
    path: str | None
    signal: int = 0


def run(name: str, settings: type[Settings], given: dict[str, Any]) -> None:
    """A whole run, or the rest of one. The path of what was learned is printed last."""
    _needed()
    folder = Folder(given["out"])
    folder.hold()
    try:
        _run(name, settings, given, folder)
    finally:
        folder.release()


def _run(name: str, settings: type[Settings], given: dict[str, Any], folder: Folder) -> None:
    from rich.console import Console

    from loreloop.cli.train_show import draw

    texts = given["texts"] or _texts(given["url"], given["model"], folder)
    order = order_of(name, settings, given, texts)
    record, console = record_of(order, given), Console(stderr=True)
    folder.open(record)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # what the SDK's next version will change
        ended = asyncio.run(_trained(order, folder, console, given))
    if given["plot"] is not None:
        draw(list(folder.measured()), given["plot"], f"{name} of {order.plan.base_model}")
    console.print(f"To repeat this run: {record.command}", highlight=False, soft_wrap=True)
    if ended.ending != "finished":
        newest = f" The newest weights are {ended.path}." if ended.path else ""
        how = "Paused; the same command goes on from here."
        if not ended.signal:
            how = "Paused, since its budget is spent; the same command with a larger one goes on from here."
        console.print(f"{how}{newest}", highlight=False, soft_wrap=True)
        # As shells have it for a signal; a run that ends where it was told to has not failed.
        raise click.exceptions.Exit(128 + ended.signal if ended.signal else 0)
    click.echo(ended.path)


def _needed() -> None:
    try:
        import matplotlib
        import rich
        import tinker
    except ImportError as error:
        raise BadRequest(f"Training needs {error.name}: pip install 'loreloop[learn]'.") from None
    del matplotlib, rich, tinker


def _texts(url: str, model: str, out: Folder) -> Path:
    """The model's tokenizer and template, from the server or from an earlier part of the run."""
    import shutil

    import httpx

    from loreloop.learn.model_texts import fetch_texts

    folder, new = out.path / "texts", out.path / "texts.new"
    # What a command has left that was refused may be of another model.
    if not folder.exists() or not out.has_begun():
        for old in (folder, new):
            shutil.rmtree(old, ignore_errors=True)
        # The folder gets its name when it is whole.
        with httpx.Client(base_url=url, timeout=60) as http:
            fetch_texts(http, model, new).rename(folder)
    return folder


def order_of(name: str, settings: type[Settings], given: dict[str, Any], texts: Path) -> Order:
    """What the options ask for, all decided. BadRequest for files that cannot be used."""
    from loreloop.learn.methods import METHODS, Order
    from loreloop.learn.rendering import renderer_of
    from loreloop.learn.rewards.graders.grader import Means
    from loreloop.learn.rewards.served_models import served_judge

    told = settings(**{field: given[field] for field in settings.__struct_fields__})
    examples, held_out = _examples(METHODS[name].read, told, given)
    asked = Asked(**{field: given[field] for field in AUTO})
    decided = chosen(name, len(examples), texts, asked)
    fields = {field: given[field] for field in Plan.__struct_fields__ if field in given}
    fields |= {field: getattr(decided, field) for field in AUTO}
    fields |= {"base_model": given["model"], "name": f"{name}-{given['suffix']}".rstrip("-")}
    try:
        plan = msgspec.convert(fields, Plan)
    except msgspec.ValidationError as error:
        raise BadRequest(f"These options make no plan of a run: {error}.") from None
    return Order(
        method=name,
        plan=plan,
        settings=told,
        renderer=renderer_of(texts),
        examples=examples,
        held_out=held_out,
        means=Means(chat=served_judge(given["url"], given["key"])),
    )


def _examples(read: Any, told: Settings, given: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """What to learn from, and what to look at: out of files, or tasks that an environment makes."""
    from loreloop.learn.files import read_file
    from loreloop.learn.played import own_tasks, reader_of

    if isinstance(told, RewardSettings) and (given["data"] or given["held_out"]):
        read = reader_of(told)
    held_out = read_file(given["held_out"], read) if given["held_out"] else []
    if given["data"] is not None:
        return read_file(given["data"], read), held_out
    # Only commands that learn from rewards can be given without a file.
    assert isinstance(told, RewardSettings)
    examples, looked_at = own_tasks(told, given["seed"])
    return examples, held_out or looked_at


def record_of(order: Order, given: dict[str, Any]) -> Record:
    """The run as its folder keeps it."""
    return Record(
        command=shlex.join(["loreloop", "train", order.method, *_arguments(order, given)]),
        method=order.method,
        plan=msgspec.to_builtins(order.plan),
        settings=msgspec.to_builtins(order.settings),
        data_sha256=sha256(given["data"]),
        eval_sha256=sha256(given["held_out"]),
        version=__version__,
    )


def _arguments(order: Order, given: dict[str, Any]) -> Iterator[str]:
    """Every option that is not at its default, and those that a rule has chosen. A key is nobody's to read."""
    for flag, name in (("--model", "model"), ("--data", "data"), ("--eval", "held_out"), ("--out", "out")):
        if given[name] is not None:
            yield from (flag, str(given[name]))
    for flag, name in (("--url", "url"), ("--suffix", "suffix"), ("--texts", "texts"), ("--plot", "plot")):
        if given[name]:
            yield from (flag, str(given[name]))
    if given.get("data_folder", DATA_FOLDER) != DATA_FOLDER:
        yield from ("--data-folder", given["data_folder"])
    for struct in (order.plan, order.settings):
        for field in msgspec.structs.fields(struct):
            value = getattr(struct, field.name)
            if field.name in ("base_model", "name") or (value == field.default and field.name not in AUTO):
                continue
            if isinstance(value, bool):
                yield flag_of(field.name) if value else f"--no-{flag_of(field.name)[2:]}"
            else:
                yield from (flag_of(field.name), str(value))


async def _trained(order: Order, folder: Folder, console: Console, given: dict[str, Any]) -> Ended:
    import tinker

    from loreloop.cli.train_show import Bar
    from loreloop.cli.train_tools import with_tools
    from loreloop.learn.methods import Keeping, train
    from loreloop.learn.refusals import words_of
    from loreloop.learn.runner import StepRecord

    position = await folder.load()
    if position is not None and position.finished:
        console.print("This run was finished before.", highlight=False)
        return Ended("finished", position.checkpoints[-1].path)
    bar = Bar(console, order.plan.n_steps(len(order.examples)), position.step if position else 0)
    stopping = _Stopping(console)

    def tell(record: StepRecord) -> None:
        folder.add(record)
        bar.tell(record)

    try:
        async with with_tools(order, given.get("data_folder", "")) as whole:
            with bar.progress, tinker.ServiceClient(base_url=given["url"], api_key=given["key"]) as service:
                ending = await train(whole, service, Keeping(folder, tell, wish=stopping.wish))
    except tinker.TinkerError as error:
        raise BadRequest(
            f"The server at {given['url']} did not do what the run asked of it: {words_of(error)}"
        ) from None
    kept = await folder.load()
    return Ended(ending, kept.checkpoints[-1].path if kept and kept.checkpoints else None, stopping.asked)


class _Stopping:
    """The first Ctrl-C, or SIGTERM, pauses the run behind its step; the second ends the program."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.asked = 0  # by which signal
        self.loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            self.loop.add_signal_handler(number, self._ask, number)

    def _ask(self, asked: int) -> None:
        self.asked = asked
        # A step may take minutes, and nothing else would show that anybody has heard.
        self.console.print("Pausing behind this step; once more ends it at once.", highlight=False)
        for number in (signal.SIGINT, signal.SIGTERM):
            self.loop.remove_signal_handler(number)

    def wish(self) -> Wish:
        """What the runner asks before every step."""
        return "pause" if self.asked else "go"

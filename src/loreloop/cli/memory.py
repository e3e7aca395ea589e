"""`loreloop memory`: the group of its verbs, and what a memory keeps of conversations, measured without a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from loreloop.cli.chat import SERVER_KEY, SERVER_URL
from loreloop.cli.memory_answers import answers
from loreloop.cli.memory_chat import chat
from loreloop.cli.memory_files import forget, resize, show
from loreloop.cli.memory_inputs import BUDGETS, FAULTS, ONLY, chosen, counter
from loreloop.cli.memory_parts import IMPORTANCE, REFILL, asks_a_model, parts_of
from loreloop.cli.memory_train import train
from loreloop.cli.models import DATA

if TYPE_CHECKING:
    from loreloop.memory.condense import CountTokens
    from loreloop.memory.evaluation.cases import Conversation
    from loreloop.memory.evaluation.minilm import Embed
    from loreloop.memory.evaluation.study import Row


@click.group()
def memory() -> None:
    """Chat with a memory of a bounded number of tokens; show, change and measure it."""


for verb in (answers, chat, show, forget, resize, train):
    memory.add_command(verb)


@memory.command("eval")
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--format",
    "form",
    type=click.Choice(["locomo", "beam", "longmemeval"]),
    default="locomo",
    show_default=True,
    help="The data set that FILE is of.",
)
@FAULTS
@ONLY
@BUDGETS
@click.option("--model", default="smollm2-135m", show_default=True, help="The model whose tokenizer counts the tokens.")
@click.option("--quick", is_flag=True, help="Without FILE: leave the histories of 10,000 turns out.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: all figures, by kind of question too.")
@IMPORTANCE
@REFILL
@SERVER_URL
@SERVER_KEY
@DATA
def evaluate(
    *,
    file: Path | None,
    form: str,
    faults: Path | None,
    only: tuple[str, ...],
    budgets: tuple[float, ...],
    model: str,
    quick: bool,
    as_json: bool,
    importance: str,
    refill: str,
    url: str,
    key: str,
    data_dir: str,
) -> None:
    """Measure how much of the evidence for questions the memory and its baselines keep, at equal budgets.

    FILE is a data set as it is published; without it, a synthetic suite is made and used. No model is asked, unless
    --importance or --refill names one: then a memory with it is measured beside the others.
    """
    import msgspec

    from loreloop.memory.evaluation import endurance, study
    from loreloop.memory.evaluation.contenders import BLIND
    from loreloop.protocol.errors import BadRequest

    count = counter(data_dir, model)
    if file is None and asks_a_model(importance, refill):
        raise BadRequest("A model was named, and no FILE; on the synthetic suite `loreloop memory train` examines it.")
    if file is None:
        turns = (100, 1000) if quick else (100, 1000, 10000)
        tables = study.synthetic_rows(count, turns, ["memory", "recency window"])
        survival, pace = endurance.survival(count, (1, 5, 20, 50)), endurance.pace(count, late=2000 if quick else 10000)
    else:
        conversations = chosen(file, form, faults, only)
        # Shares of each conversation's own length, so that long and short ones are judged alike.
        shares = budgets or (0.25, 0.1, 0.05)
        blind: list[Row] = []
        for share in shares:
            blind += study.blind_rows(conversations, [share], count, list(BLIND))
            # A large file takes minutes, and silence looks like a fault.
            click.echo(f"Not knowing the question, at {share:g}: done.", err=True)
        knowing = study.knowing_rows(conversations, shares, count, embedder())
        tables = {"not knowing the question": blind, "knowing the question": knowing}
        survival, pace = [], None
        if asks_a_model(importance, refill):
            tables["asking a model"] = asking_rows(conversations, shares, count, (importance, refill), (url, key))
    report = study.Report(tables, survival, pace)
    click.echo(msgspec.json.encode(report) if as_json else study.text_of(report))


def asking_rows(
    conversations: list[Conversation],
    budgets: tuple[float, ...],
    count: CountTokens,
    chosen_parts: tuple[str, str],
    server: tuple[str, str],
) -> list[Row]:
    """`chosen_parts` are the two options' values, `server` an address and a key."""
    from loreloop.cli.chat import client_of
    from loreloop.memory.evaluation import with_parts

    with client_of(*server) as http:
        name = f"memory, {', '.join(chosen_parts)}"
        return with_parts.rows(name, conversations, budgets, count, lambda: parts_of(count, *chosen_parts, http))


def embedder() -> Embed | None:
    """MiniLM, where its package is installed."""
    from loreloop.memory.evaluation import minilm

    folder = minilm.folder()
    return None if folder is None else minilm.MiniLm(folder)

"""`loreloop memory answers`: what a served model answers out of what the memory and its baselines keep."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loreloop.cli.chat import SERVER_KEY, SERVER_URL
from loreloop.cli.memory_inputs import BUDGETS, FAULTS, ONLY
from loreloop.cli.models import DATA

if TYPE_CHECKING:
    from loreloop.memory.generative import Sampler

MOST_WRITTEN = 256  # tokens of one text that a baseline has the model write


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@FAULTS
@ONLY
@BUDGETS
@click.option("--contender", "named", multiple=True, help="Measure this row, by its name; by default all. Repeatable.")
@click.option("--model", default=None, help="Which model answers; by default the first served.")
@SERVER_URL
@SERVER_KEY
@click.option("--window", default=8192, show_default=True, help="The context window of the model, in tokens.")
@click.option(
    "--tokenizer", default="smollm2-135m", show_default=True, help="The model whose tokenizer counts the tokens."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON: all figures, with their intervals.")
@DATA
def answers(
    *,
    file: Path,
    faults: Path | None,
    only: tuple[str, ...],
    budgets: tuple[float, ...],
    named: tuple[str, ...],
    model: str | None,
    url: str,
    key: str,
    window: int,
    tokenizer: str,
    as_json: bool,
    data_dir: str,
) -> None:
    """Measure how well a served model answers questions of LoCoMo's FILE from what each memory has kept of it.

    120 questions are asked for each row of the table; the figure is the token F1. Where a baseline has a model write,
    the served model writes too, which takes many requests.
    """
    import msgspec

    from loreloop.cli.chat import client_of, known_model
    from loreloop.cli.memory_inputs import chosen, counter
    from loreloop.memory.evaluation import answers as study
    from loreloop.protocol.errors import BadRequest

    conversations = chosen(file, "locomo", faults, only)
    count = counter(data_dir, tokenizer)
    rows: list[study.AnswerRow] = []
    with client_of(url, key) as client:
        asker = study.Asker(sampler_of(client, known_model(client, url, model)), window)
        contenders = study.contenders_for(asker.sampler)
        if unknown := set(named) - contenders.keys():
            raise BadRequest(f"No contender is called {', '.join(sorted(unknown))}; there are {', '.join(contenders)}.")
        # Without any context the model shows what it knows by itself; the ceiling sees as much as its window holds.
        plan = [("no context", study.same_for_all(lambda *_: []), 0.0)]
        plan.append((*study.ceiling(conversations, window, count), 0.0))
        plan += [(name, contenders[name], b) for b in budgets or (0.1,) for name in named or contenders]
        for name, contexts, budget in plan:
            rows.append(study.answer_row(name, contexts, conversations, budget, count, asker))
            # A row may take minutes, so each is told when it is there.
            click.echo(f"{name}: F1 {rows[-1].f1.mean:.3f} after {rows[-1].seconds:.0f} s", err=True)
    click.echo(msgspec.json.encode(rows) if as_json else study.answer_table(rows))


def sampler_of(client: Any, model: str) -> Sampler:
    """The model's most likely answer to a user's message."""
    from loreloop.cli.operator import checked

    def sampled(prompt: str, most: int) -> str:
        body = {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            # A model that does not stop would otherwise cost as much as all others together.
            "max_tokens": min(most, MOST_WRITTEN),
            "temperature": 0,
        }
        return str(checked(client.post("/chat/completions", json=body)).json()["choices"][0]["message"]["content"])

    return sampled

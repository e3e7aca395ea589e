"""`loreloop memory chat`: a conversation in the terminal whose past is a memory, kept in the data folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from loreloop.cli.chat import SERVER_KEY, SERVER_URL
from loreloop.cli.memory_inputs import counter
from loreloop.cli.memory_parts import IMPORTANCE, REFILL
from loreloop.cli.models import DATA

if TYPE_CHECKING:
    from types import SimpleNamespace

    from loreloop.memory.chat import MemoryChat
    from loreloop.memory.file_store import FileStore

NEW_BUDGET = 2048  # tokens


@click.command()
@click.argument("id")
@click.option(
    "--budget",
    type=click.IntRange(min=1),
    help=f"Most tokens that the memory may hold.  [default: its own; {NEW_BUDGET} for a new one]",
)
@click.option("--model", default=None, help="Which model answers; by default the first served.")
@click.option("--system", default="", help="What the model is told with every turn; it is not remembered.")
@SERVER_URL
@SERVER_KEY
@click.option("--max-tokens", default=512, show_default=True, help="Most tokens of one answer.")
@click.option(
    "--tokenizer", default="smollm2-135m", show_default=True, help="The model whose tokenizer counts the tokens."
)
@IMPORTANCE
@REFILL
@DATA
def chat(
    *,
    id: str,
    budget: int | None,
    model: str | None,
    system: str,
    url: str,
    key: str,
    max_tokens: int,
    tokenizer: str,
    importance: str,
    refill: str,
    data_dir: str,
) -> None:
    """Talk to a model that sees the memory ID in place of all that was said before.

    Ctrl-D or /quit ends. The next chat with the same ID goes on from its memory.
    """
    from types import SimpleNamespace

    from loreloop.cli.chat import client_of, known_model
    from loreloop.cli.memory_files import store_of
    from loreloop.cli.memory_parts import parts_of
    from loreloop.memory.chat import MemoryChat

    with client_of(url, key) as http:
        name = known_model(http, url, model)
        parts = parts_of(counter(data_dir, tokenizer), importance, refill, http)
        client = SimpleNamespace(chat=SimpleNamespace(completions=Completions(http)))
        store = store_of(data_dir)
        talk = MemoryChat(client, name, id, store, parts, budget=budget or budget_in(store, id))
        state = talk.memory.state
        click.echo(f"{name} at {url}, memory {id}: {state.tokens} of {state.budget} tokens.", err=True)
        if not run(talk, system, max_tokens):
            sys.exit(1)


def budget_in(store: FileStore, id: str) -> int:
    """The budget of a memory in tokens; what a new one is given where there is none yet."""
    from loreloop.memory.persistence import from_json

    saved = store.load(id)
    return NEW_BUDGET if saved is None else from_json(saved.data).budget


def run(talk: MemoryChat, system: str, max_tokens: int) -> bool:
    """False where a question that was piped in could not be answered."""
    from loreloop.cli.chat import read_line

    all_answered = True
    while (line := read_line()) is not None and line not in ("/quit", "/exit"):
        if line:
            all_answered = say(talk, line, system, max_tokens) and all_answered
    return all_answered or sys.stdin.isatty()


def say(talk: MemoryChat, line: str, system: str, max_tokens: int) -> bool:
    """Ctrl-C leaves the answer: what came of it is remembered."""
    from contextlib import closing

    from httpx import HTTPError

    from loreloop.protocol.errors import LoreloopError

    # The system text is sent anew with each turn, since the memory holds the conversation alone.
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": line})
    try:
        # Closing the stream also stores what has come, however the loop ends.
        with closing(talk.stream(messages, max_tokens=max_tokens)) as stream:
            for chunk in stream:
                for choice in chunk.choices:
                    click.echo(getattr(choice.delta, "content", None) or "", nl=False)
    except KeyboardInterrupt:
        click.echo(" …", nl=False)
    except (LoreloopError, HTTPError) as error:
        click.echo(f"\n{error}", err=True)
        return False
    click.echo()
    return True


class Completions:
    """As much of the `openai` package's `chat.completions` as a streamed MemoryChat needs, over an `httpx.Client`."""

    def __init__(self, http: Any) -> None:
        self.http = http

    def create(self, **body: Any) -> Iterator[SimpleNamespace]:
        """The chunks of a streamed answer, with the attributes that the `openai` package gives them; ServerError where
        the stream fails."""
        from types import SimpleNamespace

        from loreloop.cli.operator import checked
        from loreloop.protocol.errors import ServerError

        with self.http.stream("POST", "/chat/completions", json=body) as response:
            for line in checked(response).iter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    event = json.loads(
                        # Nested objects become attributes in one go.
                        line.removeprefix("data: "),
                        object_hook=lambda fields: SimpleNamespace(**fields),
                    )
                    if hasattr(event, "error"):
                        raise ServerError(event.error.message)
                    yield event

"""`loreloop chat`: a conversation in the terminal, over the server's OpenAI routes like any other client."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from loreloop.cli.operator import checked

SHOWN = 200  # characters of what a tool was asked, or gave
HELP = "/model NAME: ask another model   /system TEXT: set it   /new: begin anew   /save FILE: write it   /quit"

SERVER_URL = click.option(
    "--url",
    envvar="TINKER_BASE_URL",
    default="http://127.0.0.1:8000",
    show_default=True,
    help="The server's address; TINKER_BASE_URL if that is set.",
)
SERVER_KEY = click.option(
    "--key", envvar="TINKER_API_KEY", default="", help="A key of the server; by default that of TINKER_API_KEY."
)


@click.command()
@click.option(
    "--model", default=None, help="A base model, an alias, a deployment or tinker://…; by default the first served."
)
@click.option("--system", default="", help="The system prompt.")
@SERVER_URL
@SERVER_KEY
@click.option(
    "--max-tokens", default=512, show_default=True, type=click.IntRange(min=1), help="Most tokens of one answer."
)
@click.option("--temperature", type=float, help="0: always the likeliest token. By default the model's own, or 1.")
@click.option(
    "--tools",
    multiple=True,
    metavar="NAME",
    help="A tool server of `loreloop tools list` that the model may call. Repeatable.",
)
def chat(
    model: str | None,
    system: str,
    url: str,
    key: str,
    max_tokens: int,
    temperature: float | None,
    *,
    tools: tuple[str, ...],
) -> None:
    """Talk to a served model; Ctrl-C stops an answer, Ctrl-D or /quit ends."""
    settings: dict[str, Any] = {"max_tokens": max_tokens}
    if temperature is not None:
        settings["temperature"] = temperature
    if tools:
        settings["tools"] = [{"type": "mcp", "server_label": name} for name in tools]
        settings["agent_loop"] = {}
    with client_of(url, key) as client:
        talk = Talk(client, known_model(client, url, model), system, settings)
        # Importing the module is what changes `input`; not every Python is built with it.
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 (gives `input` history and editing)
        click.echo(f"{talk.model} at {url}. {HELP}")
        if not talk.run():
            sys.exit(1)


def client_of(url: str, key: str) -> Any:
    """An `httpx.Client` at the server's OpenAI routes."""
    import httpx

    from loreloop.protocol.errors import BadRequest

    try:
        # Both forms of the address are taken, since other clients want theirs with /v1.
        base = httpx.URL(f"{url.rstrip('/').removesuffix('/v1')}/v1")
    except httpx.InvalidURL as error:
        raise BadRequest(f"--url is {url!r}: {error}. Give one like http://127.0.0.1:8000.") from None
    if base.scheme not in ("http", "https") or not base.host:
        raise BadRequest(f"--url is {url!r}, which is no address; give one like http://127.0.0.1:8000.")
    # A header cannot carry other characters, and the library's error for it would not speak of the key.
    if not (key.isascii() and key.isprintable()):
        raise BadRequest("The key holds characters that no key has; give it as the server printed it.")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return httpx.Client(base_url=base, headers=headers, timeout=httpx.Timeout(10, read=600))


def known_model(client: Any, url: str, model: str | None) -> str:
    """The model, once the server has said that the key may ask it; without a name, the first such."""
    from urllib.parse import quote

    import httpx

    from loreloop.protocol.errors import BadRequest, Unavailable

    try:
        if model is not None:
            return str(checked(client.get(f"/models/{quote(model, safe='')}")).json()["id"])
        # The server lists its bases first, then aliases and deployments.
        listed = checked(client.get("/models")).json()["data"]
        if listed:
            return str(listed[0]["id"])
    except httpx.HTTPError as error:
        raise Unavailable(f"No server answers at {url} ({error}); start one with `loreloop serve`.") from None
    except (ValueError, LookupError, TypeError):
        raise BadRequest(f"What answers at {url} lists no models as loreloop does; is the address right?") from None
    raise BadRequest("This key sees no models; have a deployment made for it, or give another key.")


class Talk:
    """One conversation; what is said is kept until /new."""

    def __init__(self, client: Any, model: str, system: str, settings: dict[str, Any]) -> None:
        self.client, self.model, self.settings = client, model, settings
        self.messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []

    def run(self) -> bool:
        """False where a question that was piped in could not be answered: a script must hear of it."""
        all_answered = True
        while (line := read_line()) is not None:
            try:
                # A leading slash is never part of a question.
                if line.startswith("/"):
                    if not self.command(*line[1:].partition(" ")[::2]):
                        break
                elif line:
                    all_answered = self.say(line) and all_answered
            except KeyboardInterrupt:  # pressed twice: what was said stays
                click.echo()
        return all_answered or sys.stdin.isatty()

    def command(self, name: str, argument: str) -> bool:
        """False: the end."""
        match name:
            case "quit" | "exit":
                return False
            case "model" if argument:
                self.model = argument.strip()
            case "system":
                system_messages = [{"role": "system", "content": argument}] if argument else []
                # The system text stays first, where templates want it.
                self.messages = system_messages + [message for message in self.messages if message["role"] != "system"]
            case "new":
                self.messages = [message for message in self.messages if message["role"] == "system"]
            case "save" if argument:
                self.save(Path(argument.strip()))
            case _:
                click.echo(HELP)
        return True

    def save(self, file: Path) -> None:
        """Writes the model's name and the conversation to a file as JSON; says so, or why nothing was written."""
        try:
            file.expanduser().write_text(json.dumps({"model": self.model, "messages": self.messages}, indent=1))
            click.echo(f"Written to {file}.")
        except (OSError, RuntimeError, ValueError) as error:  # the last two: no such home, no such name
            click.echo(f"Nothing was written: {error}. Give /save another file.", err=True)

    def say(self, text: str) -> bool:
        """Asks and shows the answer as it comes; one that is stopped stays as far as it came, if it did. False: the
        server did not answer, and why has been said."""
        from httpx import HTTPError

        from loreloop.protocol.errors import LoreloopError

        messages = [*self.messages, {"role": "user", "content": text}]
        received = {"content": "", "reasoning_content": ""}
        try:
            for kind, piece in self.pieces(messages):
                # The answer begins on a line of its own behind the thoughts.
                if kind == "content" and received["reasoning_content"] and not received["content"]:
                    click.echo("\n", err=True)
                received[kind] += piece
                show(kind, piece)
        except KeyboardInterrupt:
            # Nothing has come yet, so the question goes too: the model would otherwise see one that has no answer.
            if not any(received.values()):
                click.echo("Not answered, and forgotten.")
                return True
            click.echo(" …", nl=False)
        except (LoreloopError, HTTPError) as error:
            click.echo(f"\n{error}", err=True)
            return False
        click.echo()
        # Thoughts go back with the next question, because some templates show them to the model.
        answer = {kind: piece for kind, piece in received.items() if piece or kind == "content"}
        self.messages = [*messages, {"role": "assistant", **answer}]
        return True

    def pieces(self, messages: list[dict[str, str]]) -> Iterator[tuple[str, str]]:
        """Parts of the answer as they come, each with the field of a message that it belongs to."""
        from loreloop.protocol.errors import ServerError

        body = {"model": self.model, "messages": messages, "stream": True, **self.settings}
        with self.client.stream("POST", "/chat/completions", json=body) as response:
            for line in checked(response).iter_lines():
                # Keep-alives and empty lines stand between the events.
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    raise ServerError(event["error"]["message"])
                for choice in event["choices"]:
                    for kind in ("reasoning_content", "content"):
                        if piece := choice["delta"].get(kind):
                            yield kind, piece
                    if activity := choice["delta"].get("tool_activity"):
                        click.echo(activity_line(activity), err=True)


def show(kind: str, piece: str) -> None:
    """Thoughts are dim, and no part of what a pipe gets."""
    if kind == "content":
        click.echo(piece, nl=False)
    else:
        click.secho(piece, dim=True, nl=False, err=True)


def activity_line(activity: dict[str, str]) -> str:
    """What a tool does, in one line."""
    text = activity["arguments"] if activity["type"] == "call" else f"-> {activity['output']}"
    line = " ".join(f"{activity['name']} {text}".split())
    return f"[{line if len(line) <= SHOWN else line[:SHOWN] + '…'}]"


def read_line() -> str | None:
    """None at the end of the input; Ctrl-C drops the line on a terminal, and ends the command where lines are piped."""
    while True:
        try:
            return input("> " if sys.stdin.isatty() else "").strip()
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            click.echo()
        except UnicodeDecodeError:
            click.echo("That line is not UTF-8; type it again.", err=True)
        except EOFError:
            return None

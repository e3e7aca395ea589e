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


@click.command()
@click.option(
    "--model", default=None, help="A base, an alias, a deployment or tinker://…; by default the first served."
)
@click.option("--system", default="", help="What the model is told beforehand.")
@click.option("--url", envvar="TINKER_BASE_URL", default="http://127.0.0.1:8000", show_default=True)
@click.option("--key", envvar="TINKER_API_KEY", default="", help="By default that of TINKER_API_KEY.")
@click.option("--max-tokens", default=512, show_default=True, help="Of one answer.")
@click.option("--temperature", default=0.7, show_default=True)
@click.option("--tools", multiple=True, metavar="NAME", help="A registered tool server the model may call. Repeatable.")
def chat(
    model: str | None, system: str, url: str, key: str, max_tokens: int, temperature: float, *, tools: tuple[str, ...]
) -> None:
    """Talk to a served model; Ctrl-C stops an answer, Ctrl-D or /quit ends."""
    import httpx

    from loreloop.protocol.errors import Unavailable

    headers = {"authorization": f"Bearer {key}"}
    with httpx.Client(base_url=f"{url.rstrip('/')}/v1", headers=headers, timeout=httpx.Timeout(10, read=600)) as client:
        try:
            settings: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature}
            if tools:
                settings["tools"] = [{"type": "mcp", "server_label": name} for name in tools]
                settings["agent_loop"] = {}
            talk = Talk(client, model or first_model(client), system, settings)
        except httpx.ConnectError:
            raise Unavailable(f"No server answers at {url}; start one with `loreloop serve`.") from None
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 (gives `input` history and editing)
        click.echo(f"{talk.model} at {url}. {HELP}")
        talk.run()


def first_model(client: Any) -> str:
    listed = client.get("/models")
    return str(checked(listed).json()["data"][0]["id"])


class Talk:
    """One conversation; what is said is kept until /new."""

    def __init__(self, client: Any, model: str, system: str, settings: dict[str, Any]) -> None:
        self.client, self.model, self.settings = client, model, settings
        self.messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []

    def run(self) -> None:
        while (line := read_line()) is not None:
            if line.startswith("/"):
                if not self.command(*line[1:].partition(" ")[::2]):
                    return
            elif line:
                self.say(line)

    def command(self, name: str, argument: str) -> bool:
        """False: the end."""
        match name:
            case "quit" | "exit":
                return False
            case "model" if argument:
                self.model = argument.strip()
            case "system":
                told = [{"role": "system", "content": argument}] if argument else []
                self.messages = told + [message for message in self.messages if message["role"] != "system"]
            case "new":
                self.messages = [message for message in self.messages if message["role"] == "system"]
            case "save" if argument:
                Path(argument).write_text(json.dumps({"model": self.model, "messages": self.messages}, indent=1))
                click.echo(f"Written to {argument}.")
            case _:
                click.echo(HELP)
        return True

    def say(self, text: str) -> None:
        """Asks and shows the answer as it comes; one that is stopped stays as far as it came."""
        from httpx import HTTPError

        from loreloop.protocol.errors import LoreloopError

        asked, answer = [*self.messages, {"role": "user", "content": text}], ""
        try:
            for piece in self.pieces(asked):
                answer += piece
                click.echo(piece, nl=False)
        except KeyboardInterrupt:
            click.echo(" …", nl=False)
        except (LoreloopError, HTTPError) as error:
            click.echo(f"\n{error}", err=True)
            return
        click.echo()
        self.messages = [*asked, {"role": "assistant", "content": answer}]

    def pieces(self, messages: list[dict[str, str]]) -> Iterator[str]:
        from loreloop.protocol.errors import ServerError

        body = {"model": self.model, "messages": messages, "stream": True, **self.settings}
        with self.client.stream("POST", "/chat/completions", json=body) as response:
            for line in checked(response).iter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    raise ServerError(event["error"]["message"])
                for choice in event["choices"]:
                    yield choice["delta"].get("content") or ""
                    if activity := choice["delta"].get("tool_activity"):
                        click.echo(told(activity), err=True)


def told(activity: dict[str, str]) -> str:
    """What a tool does, in one line."""
    text = activity["arguments"] if activity["type"] == "call" else f"-> {activity['output']}"
    line = " ".join(f"{activity['name']} {text}".split())
    return f"[{line if len(line) <= SHOWN else line[:SHOWN] + '…'}]"


def read_line() -> str | None:
    """None at the end of the input; Ctrl-C drops the line."""
    while True:
        try:
            return input("> " if sys.stdin.isatty() else "").strip()
        except KeyboardInterrupt:
            click.echo()
        except EOFError:
            return None

"""`loreloop tools`: register MCP servers whose tools requests may name, also while the server runs."""

from __future__ import annotations

import time

import click

from loreloop.cli.keys import transaction
from loreloop.cli.models import DATA


@click.group()
def tools() -> None:
    """Register MCP tool servers, and see what was called."""


@tools.command("add")
@click.argument("name")
@click.argument("command", nargs=-1)
@click.option("--url", default=None, help="Of a server that runs elsewhere, in place of a command.")
@DATA
def add_server(name: str, command: tuple[str, ...], url: str | None, data_dir: str) -> None:
    """Register NAME: a COMMAND behind `--` that speaks MCP on its input and output, or a URL.

    It will run in an empty folder. Files of this folder that the COMMAND names are written down with their whole path.
    """
    from pathlib import Path

    from loreloop.serve.tool_links import absolute, check_url
    from loreloop.store import tools as rows
    from loreloop.store.rows import ToolServer

    if bool(command) == bool(url):
        raise click.UsageError("Give a command behind `--`, or --url.")
    if url:
        check_url(url)
    with transaction(data_dir) as connection:
        rows.add(connection, ToolServer(name, absolute(command, Path.cwd()) or None, url), time.time())
    click.echo(f"Requests may name {name!r} now.")


@tools.command("list")
@DATA
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_servers(data_dir: str, as_json: bool) -> None:
    """Show the registered servers."""
    from loreloop.cli.tables import show
    from loreloop.store import tools as rows

    with transaction(data_dir) as connection:
        servers = rows.all(connection)
    show([{"name": s.name, "runs": s.url or " ".join(s.command or ())} for s in servers], as_json)


@tools.command("remove")
@click.argument("name")
@DATA
def remove_server(name: str, data_dir: str) -> None:
    """Forget a server; the record of its calls stays."""
    from loreloop.store import tools as rows

    with transaction(data_dir) as connection:
        rows.remove(connection, name)


@tools.command("calls")
@DATA
@click.option("--limit", default=20, show_default=True, help="How many, the newest first.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_calls(data_dir: str, limit: int, as_json: bool) -> None:
    """Show what was called, by which key, for how long."""
    import msgspec

    from loreloop.cli.tables import show
    from loreloop.store import tools as rows

    with transaction(data_dir) as connection:
        found = rows.calls(connection, limit)
    show([msgspec.to_builtins(call) for call in found], as_json)

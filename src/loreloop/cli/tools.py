"""`loreloop tools`: register MCP servers whose tools requests may name, also while the server runs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from loreloop.cli.keys import transaction
from loreloop.cli.models import DATA
from loreloop.cli.tables import JSON, Moment, show

if TYPE_CHECKING:
    from loreloop.store.rows import ToolCallRecord, ToolServer


NO_SERVERS = "No tool servers yet; `loreloop tools add NAME -- COMMAND` registers one."
NO_CALLS = "No tool was called yet; requests name registered servers (docs/clients.md)."


@click.group()
def tools() -> None:
    """Register MCP tool servers, and see which tools were called."""


@tools.command("add")
@click.argument("name")
@click.argument("command", nargs=-1)
@click.option("--url", default=None, help="Address of a server that runs elsewhere, in place of a COMMAND.")
@click.option("--no-check", is_flag=True, help="Register it without asking it for its tools first.")
@DATA
def add_server(name: str, command: tuple[str, ...], url: str | None, *, no_check: bool, data_dir: str) -> None:
    """Register NAME: a COMMAND behind `--` that speaks MCP on its input and output, or a URL.

    It is asked for its tools once; what does not answer as a tool server is refused, unless with --no-check.

    The COMMAND will run in an empty folder. If it names files of the current folder, their whole paths are noted.
    """
    import asyncio
    from pathlib import Path

    from loreloop.mcp.connections import absolute, check_url
    from loreloop.store import tools as rows
    from loreloop.store.rows import ToolServer

    if bool(command) == bool(url):
        raise click.UsageError("Give a command behind `--`, or --url.")
    if url:
        check_url(url)
    # The server will run in another folder, where relative paths would mean other files.
    server = ToolServer(name, absolute(command, Path.cwd()) or None, url)
    # The name is checked before the server is asked, which may take ten seconds.
    rows.check_name(name)
    tools = None if no_check else asyncio.run(tools_of(server))
    with transaction(data_dir, new=True) as connection:
        rows.add(connection, server, time.time())
    click.echo(f"Requests may name {name!r} now.")
    if tools is not None:
        click.echo(f"Its tools: {', '.join(tools) or 'none'}.")


async def tools_of(server: ToolServer) -> list[str]:
    """The names of its tools; BadRequest where it is no tool server."""
    from loreloop.mcp.toolbox import SEPARATOR, Bounds, ToolCaller, open_toolbox
    from loreloop.protocol.errors import BadRequest

    async def unrecorded(_: ToolCallRecord) -> None:
        raise AssertionError("no tool is called")

    try:
        async with open_toolbox([server], Bounds(), ToolCaller("", "", unrecorded)) as box:
            # In a toolbox the names of tools carry their server's name before them.
            return [tool.name.partition(SEPARATOR)[2] for tool in box.tools]
    except BadRequest as error:
        raise BadRequest(f"{error.message} Nothing was registered; --no-check registers it all the same.") from None


@tools.command("list")
@DATA
@JSON
def list_servers(data_dir: str, as_json: bool) -> None:
    """Show the registered servers."""
    from loreloop.store import tools as rows

    with transaction(data_dir) as connection:
        servers = rows.all(connection)
    show([{"name": s.name, "runs": s.url or " ".join(s.command or ())} for s in servers], as_json, empty=NO_SERVERS)


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
@click.option("--limit", default=20, type=click.IntRange(min=1), show_default=True, help="How many, the newest first.")
@JSON
def list_calls(data_dir: str, limit: int, as_json: bool) -> None:
    """Show which tools were called, by which key, and how long they took."""
    import msgspec

    from loreloop.store import tools as rows

    with transaction(data_dir) as connection:
        found = rows.calls(connection, limit)
    show([msgspec.to_builtins(call) | {"created": Moment(call.created)} for call in found], as_json, empty=NO_CALLS)

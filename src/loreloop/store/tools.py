"""Registered tool servers, and a record of every call of their tools."""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection, Row, delete, insert, select

from loreloop.protocol.errors import BadRequest, NotFound
from loreloop.protocol.paths import NAME
from loreloop.store.rows import ToolCallRecord, ToolServer
from loreloop.store.schema import TOOL_CALLS, TOOL_SERVERS

MAX_ARGUMENTS = 4096  # characters of a call's arguments that are kept


def add(connection: Connection, server: ToolServer, now: float) -> None:
    """BadRequest for a name that is taken or is none."""
    check_name(server.name)
    if connection.execute(select(TOOL_SERVERS.c.name).where(TOOL_SERVERS.c.name == server.name)).first():
        raise BadRequest(f"A tool server {server.name!r} is registered already; `loreloop tools remove` it first.")
    command = msgspec.json.encode(server.command).decode() if server.command else None
    connection.execute(insert(TOOL_SERVERS).values(name=server.name, command=command, url=server.url, created=now))


def check_name(name: str) -> None:
    """BadRequest for a name that could not stand in a path, or holds `__`, which parts server and tool in a model's
    calls."""
    if not NAME.fullmatch(name) or "__" in name:
        raise BadRequest(f"{name!r} is no name for a tool server; use letters, digits, '-', '.' and single '_'.")


def remove(connection: Connection, name: str) -> None:
    """Forgets a tool server; NotFound where none has this name. The record of its calls stays."""
    if not connection.execute(delete(TOOL_SERVERS).where(TOOL_SERVERS.c.name == name)).rowcount:
        raise _missing(connection, name)


def find(connection: Connection, name: str) -> ToolServer:
    """A tool server by its name; NotFound says which ones there are."""
    row = connection.execute(select(TOOL_SERVERS).where(TOOL_SERVERS.c.name == name)).first()
    if row is None:
        raise _missing(connection, name)
    return _server(row)


def all(connection: Connection) -> list[ToolServer]:
    """All registered tool servers, by name."""
    return [_server(row) for row in connection.execute(select(TOOL_SERVERS).order_by(TOOL_SERVERS.c.name))]


def record(connection: Connection, call: ToolCallRecord) -> None:
    """Keeps what one call was and how it ended; of long arguments only the beginning."""
    values = msgspec.to_builtins(call) | {"arguments": call.arguments[:MAX_ARGUMENTS]}
    connection.execute(insert(TOOL_CALLS).values(**values))


def calls(connection: Connection, limit: int) -> list[ToolCallRecord]:
    """The newest first."""
    newest = select(TOOL_CALLS).order_by(TOOL_CALLS.c.number.desc()).limit(limit)
    fields = ToolCallRecord.__struct_fields__
    return [ToolCallRecord(**{name: row._mapping[name] for name in fields}) for row in connection.execute(newest)]


def _server(row: Row[tuple[object, ...]]) -> ToolServer:
    command = msgspec.json.decode(row.command, type=tuple[str, ...]) if row.command else None
    return ToolServer(row.name, command, row.url)


def _missing(connection: Connection, name: str) -> NotFound:
    known = ", ".join(server.name for server in all(connection)) or "none"
    return NotFound(f"There is no tool server {name!r}; registered: {known}. `loreloop tools add` registers one.")

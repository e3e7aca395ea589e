"""The tools of registered MCP servers for one request: listed, called within bounds, every call recorded.

Knows no API dialect and no model.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from loreloop.protocol.errors import BadRequest
from loreloop.store.rows import ToolCallRecord, ToolServer
from loreloop.text.tool_calls import Tool

SEPARATOR = "__"  # between a server's name and its tool's
CONNECT_SECONDS = 10.0


@dataclass(frozen=True)
class Bounds:
    """Of all calls of one request together, but for `max_output_bytes`, which is each one's."""

    max_calls: int = 8
    max_seconds: float = 60.0
    max_output_bytes: int = 65536


@dataclass(frozen=True)
class ToolCaller:
    """For whom calls are made, and who writes them down."""

    key_id: str
    request_id: str
    record: Callable[[ToolCallRecord], Awaitable[None]]


@dataclass
class ToolBox:
    """`clients` are open connections by server name."""

    clients: dict[str, Any]
    tools: tuple[Tool, ...]
    bounds: Bounds
    caller: ToolCaller
    n_calls: int = 0
    deadline: float = field(default=0.0)

    def holds(self, name: str) -> bool:
        return any(tool.name == name for tool in self.tools)

    @property
    def spent(self) -> bool:
        return self.n_calls >= self.bounds.max_calls or time.monotonic() >= self.deadline

    async def call(self, name: str, arguments: str) -> str:
        """What the tool gave, or why it gave nothing: either way something for the model to read."""
        self.n_calls += 1
        server, _, tool = name.partition(SEPARATOR)
        started, outcome = time.monotonic(), "ok"
        try:
            async with asyncio.timeout(max(0.0, self.deadline - started)):
                result = await self.clients[server].call_tool(tool, json.loads(arguments))
            output, outcome = _text(result), "error" if result.is_error else "ok"
        except TimeoutError:
            output, outcome = "The tool did not answer in time.", "timeout"
        except _failures() as error:
            output, outcome = f"The tool failed: {error}", "error"
        data = output.encode()
        seconds = time.monotonic() - started
        caller = self.caller
        await caller.record(
            ToolCallRecord(
                server, tool, caller.key_id, caller.request_id, arguments, outcome, len(data), seconds, time.time()
            )
        )
        limit = self.bounds.max_output_bytes
        return output if len(data) <= limit else data[:limit].decode(errors="ignore") + "\n[cut]"


@asynccontextmanager
async def open_toolbox(servers: Sequence[ToolServer], bounds: Bounds, caller: ToolCaller) -> AsyncIterator[ToolBox]:
    """Connects to all servers; BadRequest names one that cannot be reached."""
    clients: dict[str, Any] = {}
    tools: list[Tool] = []
    try:
        async with AsyncExitStack() as stack:
            for server in servers:
                clients[server.name], listed = await _connected(stack, server)
                tools += [
                    Tool(f"{server.name}{SEPARATOR}{tool.name}", tool.description or "", dict(tool.input_schema))
                    for tool in listed
                ]
            yield ToolBox(clients, tuple(tools), bounds, caller, deadline=time.monotonic() + bounds.max_seconds)
    except ExceptionGroup as group:
        raise _sole(group) from None


async def _connected(stack: AsyncExitStack, server: ToolServer) -> tuple[Any, Sequence[Any]]:
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            client = await stack.enter_async_context(_client(server))
            return client, (await client.list_tools()).tools
    except _failures(TimeoutError, OSError) as error:
        why = str(error) or "no answer"
        raise BadRequest(f"The tool server {server.name!r} cannot be reached: {why}.") from None


def _sole(error: Exception) -> Exception:
    """What happened while connections were open, out of the groups that the library wraps around it."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _client(server: ToolServer) -> Any:
    try:
        from mcp import Client, StdioServerParameters
    except ImportError:
        raise BadRequest("This server was installed without tools; install loreloop[tools].") from None
    if server.url:
        return Client(server.url)
    command, *arguments = server.command or ()
    return Client(StdioServerParameters(command=command, args=list(arguments)))


def _failures(*more: type[Exception]) -> tuple[type[Exception], ...]:
    """What calls may raise; the library is an extra."""
    try:
        from mcp import MCPError
    except ImportError:
        return (ValueError, RuntimeError, *more)
    return (MCPError, ValueError, RuntimeError, *more)


def _text(result: Any) -> str:
    parts = [part.text if part.type == "text" else f"[{part.type}]" for part in result.content]
    return "\n".join(parts)

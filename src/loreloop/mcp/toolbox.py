"""The tools of registered MCP servers for one request: listed, called within bounds, every call recorded.

Knows no API dialect and no model.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from loreloop.mcp.connections import link_to
from loreloop.protocol.errors import BadRequest, LoreloopError
from loreloop.store.rows import ToolCallRecord, ToolServer
from loreloop.text.tools.tool_calls import Tool

SEPARATOR = "__"  # between a server's name and its tool's
CONNECT_SECONDS = 10.0  # to be reached and to list its tools
CLOSE_SECONDS = 2.0  # for all connections to end properly
MAX_WHY = 200  # characters of what a library says was wrong
MAX_PAGES = 64  # of a server's list of tools


class ToolServerError(Exception):
    """What went wrong with a server or its connection, whatever the library raised for it."""


@dataclass(frozen=True)
class Bounds:
    """Of all calls of one request together, but for `max_output_bytes` and `max_call_seconds`, which are each one's."""

    max_calls: int = 8
    max_seconds: float = 60.0
    max_output_bytes: int = 65536
    max_call_seconds: float | None = None


@dataclass(frozen=True)
class Called:
    """What a call gave, or in `output` why it gave nothing: either way something for the model to read."""

    output: str
    outcome: Literal["ok", "error", "timeout"]


@dataclass(frozen=True)
class ToolCaller:
    """For whom calls are made, and who writes them down."""

    key_id: str
    request_id: str
    record: Callable[[ToolCallRecord], Awaitable[None]]


@dataclass
class Toolbox:
    """`clients` are open connections by server name."""

    clients: dict[str, Any]
    tools: tuple[Tool, ...]
    bounds: Bounds
    caller: ToolCaller
    n_calls: int = 0
    deadline: float = field(default=0.0)

    def holds(self, name: str) -> bool:
        """Whether a tool of this name, with its server's before it, is in the box."""
        return any(tool.name == name for tool in self.tools)

    @property
    def spent(self) -> bool:
        """Whether no further call is allowed, by number or by time."""
        return self.n_calls >= self.bounds.max_calls or time.monotonic() >= self.deadline

    async def call(self, name: str, arguments: str) -> str:
        """What the model reads of a call."""
        return (await self.called(name, arguments)).output

    async def called(self, name: str, arguments: str) -> Called:
        """Makes a call within its bounds, and has it recorded, whatever came of it."""
        self.n_calls += 1
        server, _, tool = name.partition(SEPARATOR)
        started = time.monotonic()
        made = await self._within(self._seconds_left(started), server, tool, arguments)
        data = made.output.encode()
        caller = self.caller
        await caller.record(
            ToolCallRecord(
                server=server,
                tool=tool,
                key_id=caller.key_id,
                request_id=caller.request_id,
                arguments=arguments,
                outcome=made.outcome,
                output_bytes=len(data),
                seconds=time.monotonic() - started,
                created=time.time(),
            )
        )
        limit = self.bounds.max_output_bytes
        return made if len(data) <= limit else replace(made, output=data[:limit].decode(errors="ignore") + "\n[cut]")

    def _seconds_left(self, now: float) -> float:
        """For a call that begins now."""
        # The time is that of all calls together, so a slow one leaves less for those after it.
        left, each = max(0.0, self.deadline - now), self.bounds.max_call_seconds
        return left if each is None else min(left, each)

    async def _within(self, seconds: float, server: str, tool: str, arguments: str) -> Called:
        try:
            async with asyncio.timeout(seconds):
                with _library_errors():
                    result = await self.clients[server].call_tool(tool, json.loads(arguments))
        except TimeoutError:
            return Called("The tool did not answer in time.", "timeout")
        except ToolServerError as error:
            return Called(f"The tool failed: {error}", "error")
        return Called(_text(result), "error" if result.is_error else "ok")


@asynccontextmanager
async def open_toolbox(servers: Sequence[ToolServer], bounds: Bounds, caller: ToolCaller) -> AsyncIterator[Toolbox]:
    """Connects to all servers; BadRequest names one that cannot be reached."""
    clients: dict[str, Any] = {}
    tools: list[Tool] = []
    loop, done, inside = asyncio.get_running_loop(), False, None
    try:
        async with asyncio.timeout(None) as closing, AsyncExitStack() as stack:
            for server in servers:
                clients[server.name], listed = await _connected(stack, server)
                tools += [
                    Tool(f"{server.name}{SEPARATOR}{tool.name}", tool.description or "", dict(tool.input_schema))
                    for tool in listed
                ]
            try:
                yield Toolbox(
                    clients=clients,
                    tools=tuple(tools),
                    bounds=bounds,
                    caller=caller,
                    deadline=time.monotonic() + bounds.max_seconds,
                )
                done = True
            finally:
                # What the request itself raised must come out as it was, not inside a group of the library's.
                inside = sys.exception()
                closing.reschedule(loop.time() + CLOSE_SECONDS)
    except (ExceptionGroup, TimeoutError) as ended:
        error = inside if isinstance(inside, Exception) else _sole(ended)
        if isinstance(error, LoreloopError) or error is inside:
            raise error from None
        if not done:  # what was open when all was done harms nobody
            raise BadRequest(f"The connection to a tool server broke: {_why(error)}.") from ended


async def _connected(stack: AsyncExitStack, server: ToolServer) -> tuple[Any, Sequence[Any]]:
    client = _client(server)
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            with _library_errors():
                await stack.enter_async_context(client)
                return client, await _listed(client)
    except (TimeoutError, ToolServerError) as error:
        why = str(error) or "no answer"
        raise BadRequest(f"The tool server {server.name!r} cannot be reached: {why}.") from None


async def _listed(client: Any) -> list[Any]:
    page = await client.list_tools()
    tools = list(page.tools)
    for _ in range(MAX_PAGES):
        if page.next_cursor is None:
            return tools
        page = await client.list_tools(cursor=page.next_cursor)
        tools += page.tools
    raise ToolServerError(f"its list of tools has over {MAX_PAGES} pages")


@contextmanager
def _library_errors() -> Iterator[None]:
    """What a foreign server makes its library raise is anything at all."""
    try:
        yield
    except Exception as error:
        raise ToolServerError(_why(error)) from error


def _why(error: Exception) -> str:
    """The first line of it, of a readable length: some messages quote what they were sent."""
    error = _sole(error)
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:MAX_WHY].rstrip(".:")


def _sole(error: Exception) -> Exception:
    """What happened, out of the groups that the library wraps around it."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def _client(server: ToolServer) -> Any:
    try:
        from mcp import Client
    except ImportError:
        raise BadRequest("This server was installed without tools; install loreloop[tools].") from None
    return Client(link_to(server))


def _text(result: Any) -> str:
    parts = [part.text if part.type == "text" else f"[{part.type}]" for part in result.content]
    return "\n".join(parts)

"""The tools of a registered MCP server for a run of `loreloop train`: one connection, and every call is recorded."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from loreloop.cli.keys import transaction

if TYPE_CHECKING:
    from loreloop.learn.methods import Order
    from loreloop.store.rows import ToolCallRecord

CALL_SECONDS = 60.0
FOREVER = (
    10 * 365 * 86_400.0
)  # seconds: the whole run is one user of the server, and its episodes have their own bounds
CALLER = "loreloop train"


@asynccontextmanager
async def with_tools(order: Order, data_folder: str) -> AsyncIterator[Order]:
    """The order with the tools that its settings name by a registered server, as long as that is connected; the order
    itself where they name none. NotFound for a server that is not registered, BadRequest for one that is not there."""
    from loreloop.learn.environments.given import ToolFailure, ToolTimeout, server_tools
    from loreloop.learn.played import SERVER_TOOLS
    from loreloop.learn.settings import RewardSettings
    from loreloop.mcp.toolbox import Bounds, ToolCaller, open_toolbox
    from loreloop.store import tools as rows

    settings = order.settings
    if not isinstance(settings, RewardSettings) or not settings.tools.startswith(SERVER_TOOLS):
        yield order
        return
    with transaction(data_folder) as connection:
        server = rows.find(connection, settings.tools.removeprefix(SERVER_TOOLS))

    def note(call: ToolCallRecord) -> None:
        with transaction(data_folder) as connection:
            rows.record(connection, call)

    async def record(call: ToolCallRecord) -> None:
        await asyncio.to_thread(note, call)

    # Each call has its own time, since a run has no end that could bound all of them together.
    bounds = Bounds(max_calls=1 << 62, max_seconds=FOREVER, max_call_seconds=CALL_SECONDS)
    async with open_toolbox([server], bounds, ToolCaller(CALLER, order.plan.name, record)) as box:

        async def call(name: str, arguments: Mapping[str, Any]) -> str:
            made = await box.called(name, json.dumps(arguments))
            if made.outcome == "ok":
                return made.output
            raise (ToolTimeout if made.outcome == "timeout" else ToolFailure)(made.output)

        yield replace(order, tools=server_tools(box.tools, call))

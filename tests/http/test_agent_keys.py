"""The loop over tools: whose keys reach registered servers, and what a request hears when its loop is stopped."""

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from loreloop.http.generation.agent_loop import AgentRun, LiveRun, Tools
from loreloop.mcp.toolbox import Toolbox
from loreloop.protocol.errors import ServerError
from loreloop.store import deployments, tools
from loreloop.store.rows import Arm, Split, ToolServer
from tests.http.site import Site, play
from tests.store.place import write_now


def test_a_key_of_one_deployment_reaches_no_registered_server(tmp_path: Path) -> None:
    started = tmp_path / "started"
    command = (sys.executable, "-c", f"open({str(started)!r}, 'w')")

    async def scene(site: Site) -> None:
        store = site.services.store
        write_now(store, tools.add, ToolServer("files", command, None), time.time())
        write_now(store, deployments.set, "bot", None, Split(Arm("fake", "fake")), time.time(), "me")
        async with site.client_with(site.new_key("infer:bot")) as key:
            for label in ("files", "others"):
                body: dict[str, Any] = {"model": "bot", "messages": [{"role": "user", "content": "1"}]}
                body |= {"agent_loop": {}, "tools": [{"type": "mcp", "server_label": label}]}
                for stream in (False, True):
                    refused = await key.post("http://site/v1/chat/completions", json=body | {"stream": stream})
                    assert refused.status_code == 403, refused.text
                    assert "scope 'infer'" in refused.text
                    assert "registered" not in refused.text
        assert not started.exists()

    play(scene)


class Broken:
    """Tools whose connection breaks while it is opened, which cancels the task."""

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Toolbox]:
        raise asyncio.CancelledError
        yield


@pytest.mark.timed
def test_a_loop_that_is_stopped_before_it_began_says_so() -> None:
    async def scene() -> None:
        live = LiveRun(cast(AgentRun, None), cast(Tools, Broken()))
        with pytest.raises(ServerError, match="was stopped"):
            await asyncio.wait_for(live.first(), 2)

    asyncio.run(scene())


def test_a_loop_ends_with_the_request_that_waits_for_it() -> None:
    class Slow(Broken):
        @contextlib.asynccontextmanager
        async def open(self) -> AsyncIterator[Toolbox]:
            await asyncio.sleep(60)
            yield cast(Toolbox, None)

    async def scene() -> None:
        live = LiveRun(cast(AgentRun, None), cast(Tools, Slow()))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(live.first(), 0.05)
        await asyncio.wait([live.task], timeout=2)
        assert live.task.cancelled()

    asyncio.run(scene())

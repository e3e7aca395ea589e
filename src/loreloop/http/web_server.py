"""The web server around the application: its settings, and its end, at which everybody is answered first."""

from __future__ import annotations

import asyncio
import signal
import socket

import uvicorn
from starlette.types import ASGIApp

from loreloop.host.address import BACKLOG
from loreloop.host.dispatcher import Dispatcher
from loreloop.http.connection import BoundedConnection

LAST_ANSWERS_SECONDS = 1.0


async def serve_until_told(app: ASGIApp, dispatcher: Dispatcher, listening: socket.socket) -> None:
    """Until SIGTERM or SIGINT."""
    # The server's own log, lifespan and loop are switched off: this process has all three already.
    settings = uvicorn.Config(
        app,
        http=BoundedConnection,
        ws="none",
        loop="none",
        lifespan="off",
        log_config=None,
        log_level="error",  # what strangers send is no warning
        access_log=False,
        backlog=BACKLOG,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=1,
        date_header=False,
    )
    await _Server(settings, dispatcher).serve(sockets=[listening])


class _Server(uvicorn.Server):
    """uvicorn looks ten times a second whether it shall end, and then breaks requests off; this one is told, and has
    everybody answered."""

    def __init__(self, settings: uvicorn.Config, dispatcher: Dispatcher) -> None:
        super().__init__(settings)
        self.dispatcher = dispatcher

    async def main_loop(self) -> None:
        ended = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, ended.set)
        await ended.wait()
        # This answers everybody who waits; what is left is to let those answers get out before the sockets close.
        self.dispatcher.stop()
        if tasks := set(self.server_state.tasks):
            _, late = await asyncio.wait(tasks, timeout=LAST_ANSWERS_SECONDS)
            for task in late:
                task.cancel()

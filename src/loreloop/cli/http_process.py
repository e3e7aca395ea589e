"""The HTTP process, as the supervisor starts it: `python -m loreloop.cli.http_process PLAN PARENT_PID LIFE`."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from pathlib import Path

LOG = logging.getLogger(__name__)
LAST_ANSWERS_SECONDS = 1.0  # when the server stops


def main(plan_file: str, parent_pid: int) -> None:
    import uvicorn

    from loreloop.host.address import BACKLOG
    from loreloop.host.desk import Desk
    from loreloop.host.log import speak_to_supervisor
    from loreloop.host.orphans import die_with_parent
    from loreloop.host.plan import read_plan
    from loreloop.host.supervisor import CANNOT_START
    from loreloop.host.web import run_web
    from loreloop.http.app import create_app
    from loreloop.http.connection import BoundedConnection
    from loreloop.http.pictures import Pictures
    from loreloop.http.services import Services
    from loreloop.protocol.errors import UserError
    from loreloop.serve.names import Names
    from loreloop.serve.texts import Texts

    class QuietServer(uvicorn.Server):
        """uvicorn looks ten times a second whether it shall end, and then breaks requests off; this one is told, and
        has everybody answered first."""

        def __init__(self, settings: uvicorn.Config, desk: Desk) -> None:
            super().__init__(settings)
            self.desk = desk

        async def main_loop(self) -> None:
            ended = asyncio.Event()
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, ended.set)
            await ended.wait()
            self.desk.stop()
            if tasks := set(self.server_state.tasks):
                _, late = await asyncio.wait(tasks, timeout=LAST_ANSWERS_SECONDS)
                for task in late:
                    task.cancel()

    die_with_parent(parent_pid)
    speak_to_supervisor()
    plan = read_plan(plan_file)

    async def serve(desk: Desk, listening: socket.socket) -> None:
        names = Names({name: Path(folder) for name, folder in plan.folders.items()}, plan.config.aliases)
        pictures = Pictures(plan.config)
        app = create_app(Services(plan.config, desk.store, desk, names, Texts(), pictures, nonce=plan.nonce))
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
        try:
            await QuietServer(settings, desk).serve(sockets=[listening])
        finally:
            await pictures.close()

    try:
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run_web(plan, serve))
    except UserError as error:
        LOG.error("%s", error.message)
        sys.exit(CANNOT_START)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

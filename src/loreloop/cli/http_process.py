"""The HTTP process, as the supervisor starts it: `python -m loreloop.cli.http_process PLAN PARENT_PID LIFE`."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loreloop.host.dispatcher import Dispatcher
    from loreloop.host.job_desk import JobDesk
    from loreloop.host.server_plan import ServerPlan
    from loreloop.http.services import Services

LOG = logging.getLogger("loreloop.http_process")


def main(plan_file: str, parent_pid: int) -> None:
    """Runs the HTTP process until a signal comes; exit code 78 where its settings cannot work."""
    from loreloop.host.orphans import die_with_parent

    die_with_parent(parent_pid)  # before libraries that take seconds to load
    from loreloop.host.log import speak_to_supervisor
    from loreloop.host.server_plan import read_plan
    from loreloop.host.starts import say_up
    from loreloop.host.supervisor import CANNOT_START
    from loreloop.host.web import run_web
    from loreloop.http.application import create_app
    from loreloop.http.web_server import serve_until_told
    from loreloop.protocol.errors import UserError

    speak_to_supervisor()
    plan = read_plan(plan_file)

    async def serve(dispatcher: Dispatcher, desk: JobDesk, listening: socket.socket) -> None:
        served = _services(plan, dispatcher, desk)
        _ = served.secret  # at the very first start it is made, which waits for the disk
        app = create_app(served)
        # From here on a death is no longer one at the start (`host/starts.py`).
        say_up(plan.up_folder, os.getpid())
        try:
            await serve_until_told(app, dispatcher, listening)
        finally:
            await served.recorder.close()
            await served.pictures.close()
            await served.grading.close()

    try:
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run_web(plan, serve))
            LOG.info("ended")
            sys.stderr.flush()
            os._exit(0)  # all is written and answered; the interpreter's own end takes seconds on a busy machine
    except UserError as error:
        LOG.error("%s", error.message)
        sys.exit(CANNOT_START)


def _services(plan: ServerPlan, dispatcher: Dispatcher, desk: JobDesk) -> Services:
    """What the routes work with."""
    from loreloop.deployments.model_names import ModelNames
    from loreloop.deployments.model_texts import ModelTexts
    from loreloop.http.grading import Grading
    from loreloop.http.pictures import Pictures
    from loreloop.http.services import Services

    # The engines have loaded the weights of these folders; this process reads tokenizers and templates there.
    folders = {name: Path(folder) for name, folder in plan.folders.items()}
    return Services(
        config=plan.config,
        store=dispatcher.store,
        dispatcher=dispatcher,
        names=ModelNames(folders, plan.config.aliases, plan.hub_ids),
        texts=ModelTexts(),
        pictures=Pictures(plan.config),
        grading=Grading(plan.config.code_sandbox, plan.config.limits.code_seconds),
        nonce=plan.nonce,
        desk=desk,
        has_worker=plan.has_worker,
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

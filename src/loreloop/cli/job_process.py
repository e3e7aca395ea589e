"""The worker of fine-tuning jobs, as the supervisor starts it: `python -m loreloop.cli.job_process PLAN PARENT_PID`."""

from __future__ import annotations

import logging
import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loreloop.learn.jobs.worker import Orders, Send
    from loreloop.protocol.jobs import Assignment

LOG = logging.getLogger("loreloop.job_process")


def main(plan_file: str, parent_pid: int) -> None:
    """Takes jobs until the HTTP process is gone or a signal comes. What runs then goes on from where it was kept."""
    from loreloop.host.orphans import die_with_parent

    die_with_parent(parent_pid)
    from loreloop.host.link import WorkerLink, first_link
    from loreloop.host.log import speak_to_supervisor
    from loreloop.host.server_plan import read_plan
    from loreloop.host.starts import say_up

    speak_to_supervisor()
    plan = read_plan(plan_file)
    link = first_link(WorkerLink, plan.worker_socket)
    signal.signal(signal.SIGTERM, lambda *_: link.inbox.put(None))
    # Ctrl-C in a terminal reaches all processes; only the supervisor decides on the end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    say_up(plan.up_folder, os.getpid())
    from loreloop.learn.jobs.worker import Worker

    def do(assignment: Assignment, send: Send, orders: Orders) -> bool:
        # The SDK and what it brings take seconds to load and much memory, so a server without jobs never does.
        from loreloop.http.grading import Grading
        from loreloop.learn.jobs import work

        place = work.Place(plan.folders, lambda: Grading(plan.config.code_sandbox, plan.config.limits.code_seconds))
        return work.do(assignment, send, orders, place)

    Worker(link.inbox, link.send, do).run()
    LOG.info("ended")
    sys.stderr.flush()
    os._exit(0)  # threads of jobs would hold the process up


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

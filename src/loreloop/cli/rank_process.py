"""A further process of an engine, as the first one starts it:
`python -m loreloop.cli.rank_process PLAN MODEL REPLICA PARENT RANK MEETING`."""

from __future__ import annotations

import logging
import signal
import sys
from pathlib import Path

LOG = logging.getLogger("loreloop.engine_process")


def main(plan_file: str, base_model: str, replica: int, parent_pid: int, rank: int, meeting: Path) -> None:
    """Does what the first process does, until that ends."""
    from loreloop.host.orphans import die_with_parent

    die_with_parent(parent_pid)
    # The first process decides on the end.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    from loreloop.cli.engine_process import engine_of
    from loreloop.cli.ranks import Meeting, meet, watch_of
    from loreloop.engine.leading import follow
    from loreloop.host.log import speak_to_supervisor
    from loreloop.host.server_plan import read_plan
    from loreloop.host.supervisor import CANNOT_START
    from loreloop.parallel.mesh import parse_mesh
    from loreloop.protocol.errors import UserError

    speak_to_supervisor()
    plan = read_plan(plan_file)
    mesh = parse_mesh(plan.config.engine.mesh)
    place = meet(mesh, rank, Meeting.in_file(meeting, mesh.n_ranks))
    try:
        engine = engine_of(plan, base_model, place, replica)
    except UserError as error:
        LOG.error("process %d of the engine: %s", rank, error.message)  # a file may be wrong in its share alone
        sys.exit(CANNOT_START)
    follow(engine, watch_of(plan.config.engine, parent_pid, rank).amid)


if __name__ == "__main__":
    plan_file, base_model, replica, parent_pid, rank, meeting = sys.argv[1:]
    main(plan_file, base_model, int(replica), int(parent_pid), int(rank), Path(meeting))

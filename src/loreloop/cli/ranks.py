"""The further processes of an engine that is cut over several: started by the first, and ended with it.

They meet over a file in the server's own folder, and speak over the loopback address.
"""

from __future__ import annotations

import logging
import os
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from loreloop.config import EngineConfig
    from loreloop.host.server_plan import ServerPlan
    from loreloop.parallel.mesh import Mesh
    from loreloop.parallel.place import Place

LOG = logging.getLogger("loreloop.engine_process")
WAIT_DAYS = 3650  # for the first process's next word: there may be nothing to do
MODULE = "loreloop.cli.rank_process"
LOOPBACK = "lo"


def leading_place(plan: ServerPlan, plan_file: str, base_model: str) -> Place:
    """The first place of the mesh that the settings ask for; starts the processes of the others. BadRequest where it is
    none. Must be called by the main thread: they end with the thread that started them."""
    from loreloop.host import children
    from loreloop.parallel.mesh import Mesh, parse_mesh
    from loreloop.parallel.place import ALONE

    text = plan.config.engine.mesh
    mesh = parse_mesh(text) if text else Mesh()
    if mesh.n_ranks == 1:
        return ALONE
    meeting = plan.run_folder / f"ranks-{os.getpid()}"
    meeting.unlink(missing_ok=True)
    for rank in range(1, mesh.n_ranks):
        command = children.python(MODULE, plan_file, base_model, str(os.getpid()), str(rank), str(meeting))
        process = subprocess.Popen(command, env=children.environment())
        threading.Thread(target=_end_with, args=(process, rank), daemon=True).start()
    place = meet(mesh, 0, meeting)
    meeting.unlink(missing_ok=True)
    return place


def check_fits(config: EngineConfig, folders: Iterable[Path]) -> None:
    """BadRequest where the settings' mesh is none, or cannot be laid over one of the models."""
    if not config.mesh:
        return
    import torch

    from loreloop.formats.load import read_spec
    from loreloop.parallel.mesh import check_mesh, parse_mesh
    from loreloop.protocol.errors import BadRequest

    mesh = parse_mesh(config.mesh)
    for folder in folders:
        check_mesh(read_spec(folder), mesh)
    if mesh.n_ranks == 1:
        return
    if config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available()):
        raise BadRequest('A mesh of several processes runs on CPUs so far; set engine.device = "cpu".')
    if config.quantize != "none":
        raise BadRequest("A mesh of several processes does not cut weights in 4 bits yet; serve without --quantize.")


def meet(mesh: Mesh, rank: int, meeting: Path) -> Place:
    """Waits until all processes of the mesh are there."""
    from datetime import timedelta

    from torch import distributed
    from torch._C._distributed_c10d import FileStore

    from loreloop.parallel.place import place_of

    # Without it each process would look up the machine's own name, which may stand for an address that others reach.
    os.environ["GLOO_SOCKET_IFNAME"] = LOOPBACK
    store = FileStore(str(meeting), mesh.n_ranks)
    distributed.init_process_group(
        "gloo", store=store, rank=rank, world_size=mesh.n_ranks, timeout=timedelta(days=WAIT_DAYS)
    )
    place = place_of(mesh)
    # The first process takes the file away, which the others may still be reading to make their groups.
    distributed.barrier()
    return place


def _end_with(process: subprocess.Popen[bytes], rank: int) -> None:
    """A lost process takes the engine with it, which the supervisor starts again whole."""
    code = process.wait()
    LOG.error("process %d of the engine ended (%d); the engine ends with it", rank, code)
    os._exit(code if code > 0 else 1)

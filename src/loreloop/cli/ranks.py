"""The further processes of an engine that is cut over several: started by the first, and ended with it.

They meet over a file in the server's own folder, and speak over the loopback address.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch._C._distributed_c10d import Store

    from loreloop.config import EngineConfig
    from loreloop.host.server_plan import ServerPlan
    from loreloop.host.silence import Afar, Watch
    from loreloop.parallel.mesh import Mesh
    from loreloop.parallel.place import Place

LOG = logging.getLogger("loreloop.engine_process")
WAIT_DAYS = 3650  # for the first process's next word: there may be nothing to do
MODULE = "loreloop.cli.rank_process"
LATER = 1.25  # times the seconds that the first process waits
LOOPBACK = "lo"


def leading_place(plan: ServerPlan, plan_file: str, base_model: str, replica: int) -> Place:
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
        words = (plan_file, base_model, str(replica), str(os.getpid()), str(rank), str(meeting))
        command = children.python(MODULE, *words)
        process = subprocess.Popen(command, env=children.environment())
        threading.Thread(target=_end_with, args=(process, rank), daemon=True).start()
    place = meet(mesh, 0, Meeting.in_file(meeting, mesh.n_ranks))
    meeting.unlink(missing_ok=True)
    return place


def check_fits(config: EngineConfig, folders: Iterable[Path]) -> None:
    """BadRequest where the settings' mesh is none, or cannot be laid over one of the models, or hosts were asked for
    without what that takes."""
    _check_ray(config)
    if not config.mesh:
        return
    import torch

    from loreloop.formats.configuration import read_spec
    from loreloop.parallel.mesh import check_mesh, parse_mesh
    from loreloop.protocol.errors import BadRequest

    mesh = parse_mesh(config.mesh)
    for folder in folders:
        check_mesh(read_spec(folder), mesh)
    if mesh.n_ranks == 1:
        return
    if config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available()):
        raise BadRequest('A mesh of several processes runs on CPUs so far; set engine.device = "cpu".')


def _check_ray(config: EngineConfig) -> None:
    from importlib.util import find_spec

    from loreloop.protocol.errors import WrongSettings

    if not config.ray:
        return
    if find_spec("ray") is None:
        raise WrongSettings('--ray needs the package ray: pip install "loreloop[ray]".')
    if not config.mesh:
        raise WrongSettings("--ray spreads the processes of a mesh over hosts; give --mesh too, such as --mesh tp=2.")
    # Ray counts the CPUs that each process asks for, and all processes must add up in the same order.
    if not config.threads:
        raise WrongSettings("--ray needs --threads: as many CPUs are asked of Ray for each process, on every host.")


@dataclass(frozen=True)
class Meeting:
    """Where processes find one another, and the network interface over which they speak from then on."""

    store: Store
    interface: str

    @staticmethod
    def in_file(file: Path, n_ranks: int) -> Meeting:
        """For those of one host; over an interface that no other host reaches."""
        from torch._C._distributed_c10d import FileStore

        return Meeting(FileStore(str(file), n_ranks), LOOPBACK)

    @staticmethod
    def over_network(host: str, port: int, n_ranks: int, interface: str) -> Meeting:
        """For a process that goes to the first one's store."""
        from torch._C._distributed_c10d import TCPStore

        return Meeting(TCPStore(host, port, n_ranks, wait_for_workers=False), interface)


def meet(mesh: Mesh, rank: int, meeting: Meeting) -> Place:
    """Waits until all processes of the mesh are there, and none of them needs the store any more."""
    from datetime import timedelta

    from torch import distributed

    from loreloop.parallel.place import place_of

    # Without it each process would look up the machine's own name, which may stand for another address.
    os.environ["GLOO_SOCKET_IFNAME"] = meeting.interface
    patience = timedelta(days=WAIT_DAYS)
    distributed.init_process_group("gloo", store=meeting.store, rank=rank, world_size=mesh.n_ranks, timeout=patience)
    place = place_of(mesh, patience)
    # One process may be through with its groups while another still reads how to reach it. The file of the meeting must
    # not be removed before all are.
    place.total(0.0)
    return place


def watch_of(config: EngineConfig, first: int, rank: int, afar: Afar | None = None) -> Watch:
    """A process's watch over its group, which ends where it does nothing amid its work; the supervisor starts it again.
    `first` is the first process's id. On several hosts that one alone watches, over what the others, `afar`, say."""
    from loreloop.host.silence import Watch, group_of

    def end(why: str) -> None:
        LOG.error("process %d ends the engine: %s", rank, why)
        sys.stderr.flush()
        # A stopped process heeds this too, and the others end with the first.
        os.kill(first, signal.SIGKILL)

    # The first has the first word. The others speak where it is the one that has stopped.
    patience = config.silence_seconds * (LATER if rank else 1)
    if not config.ray or afar is None:
        return Watch(group_of(first), patience, end)
    return Watch([first] if Path(f"/proc/{first}").exists() else [], patience, end, afar)


def _end_with(process: subprocess.Popen[bytes], rank: int) -> None:
    """A lost process takes the engine with it, which the supervisor starts again whole."""
    code = process.wait()
    LOG.error("process %d of the engine ended (%d); the engine ends with it", rank, code)
    os._exit(code if code > 0 else 1)

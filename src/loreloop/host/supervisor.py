"""Starts the processes of a server, starts them again when they die, and ends them in order.

One HTTP process, for every base model one engine process and its replicas, and one worker for fine-tuning jobs. Without
anything to do it sleeps in `wait`.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, NoReturn

from loreloop.host import children
from loreloop.host.log import Log
from loreloop.host.server_plan import ServerPlan
from loreloop.host.starts import MAX_STARTS, Starts, came_up, reason_of
from loreloop.protocol.errors import BadRequest, ServerError
from loreloop.protocol.folders import make_private
from loreloop.protocol.syncing import CANNOT_SYNC
from loreloop.store import lost

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 30.0
STEADY_SECONDS = 60.0  # after this long a process counts as healthy again
ENGINE_GRACE_SECONDS, HTTP_GRACE_SECONDS = 5.0, 2.5  # to end by themselves; together well below ten
CANNOT_START = 78  # exit code of a child whose settings are wrong: starting it again would not help


class _Stop(Exception):
    """A signal asked for the end."""


@dataclass
class _Child:
    """One process and how often it has died in a row. `lives` counts its starts."""

    module: str
    arguments: list[str]
    name: str = "http"  # in the log
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    n_deaths: int = 0
    lives: int = 0
    starts: Starts = field(default_factory=Starts)
    environment: Mapping[str, str] = field(default_factory=dict)  # laid over this process's own
    is_replica: bool = False

    @property
    def is_needed(self) -> bool:
        """Whether the server ends where this process cannot start. A replica that has been up once had good settings;
        whatever keeps it down now, the others go on without it."""
        return not (self.is_replica and self.starts.has_come_up)


class Supervisor:
    """`environment` is laid over this process's own for the engines; `notes` are said first. Whoever runs it holds the
    data folder's lock."""

    def __init__(self, plan: ServerPlan, environment: Mapping[str, str], notes: Sequence[str] = ()) -> None:
        self.plan, self.environment, self.notes = plan, dict(environment), notes
        path = str(plan.file)
        self.http = _Child("loreloop.cli.http_process", [path])
        self.engines = [
            _Child(
                module="loreloop.cli.engine_process",
                arguments=[path, name, str(replica)],
                name=_name(plan, name, replica),
                is_replica=replica > 0,
            )
            # Those that train come first: they have the most to do at their start.
            for replica in range(plan.config.engine.n_replicas + 1)
            for name in plan.folders
        ]
        for engine in self.engines:
            engine.environment = self.environment
        # Its tensors are small: with more threads than one it would only take cores from the engines.
        worker = _Child(module="loreloop.cli.job_process", arguments=[path], name="jobs")
        # The SDK's reports of itself would come here only to be thrown away.
        worker.environment = {"OMP_NUM_THREADS": "1", "TINKER_TELEMETRY": "0"}
        self.workers = [worker] if plan.has_worker else []
        self.due: list[tuple[float, _Child]] = []  # when dead children start again

    def run(self) -> None:
        """Until SIGTERM or SIGINT."""
        self.log = Log(self.plan.config.log_path, verbose=self.plan.config.verbose)
        print(f"The log is in {self.log.file}", flush=True)
        self.plan.address_file.unlink(missing_ok=True)  # of a server that was killed
        self.plan.write()
        for note in self.notes:
            self._say(logging.WARNING, note)
        lost.confirm_reported(self.plan.config.data_path)
        for folder in (self.plan.empty_folder, self.plan.up_folder):
            shutil.rmtree(folder, ignore_errors=True)
        # Emptied at every start: what a tool server has left there must not meet the next one.
        self.plan.empty_folder.mkdir()
        # An alarm and not a thread: a child would die with the thread that started it (host/orphans.py).
        signal.signal(signal.SIGALRM, lambda number, frame: self._start_due())
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, _raise_stop)
            self._start(self.http)
            for child in (*self.engines, *self.workers):
                self._start(child)
            while True:
                try:
                    pid, status = os.wait()
                except ChildProcessError:  # all are dead and wait for their next start
                    time.sleep(FIRST_PAUSE_SECONDS)
                    continue
                exit_code, own = os.waitstatus_to_exitcode(status), self._children_of(pid)
                # As the first process of a container this one reaps orphans as well, which exit with what they like.
                if not own:
                    continue
                if exit_code == CANNOT_SYNC:
                    # Nothing is started again: the disk may have lost what a process believes to be there.
                    self._say(logging.ERROR, f"pid {pid} could not sync what it wrote; the server stops")
                    raise ServerError(f"The server stops: its disk refused a sync. The log {self.log.file} says which.")
                if exit_code == CANNOT_START and all(child.is_needed for child in own):
                    raise BadRequest(f"The server cannot start; the reason stands above, and in {self.log.file}.")
                self._replace(pid, exit_code)
        except _Stop:
            pass
        finally:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
                # A second Ctrl-C must not break off the orderly end.
                signal.signal(number, signal.SIG_IGN)
            self._end()
            self.log.close()

    def _start(self, child: _Child) -> None:
        child.lives += 1
        child.started = time.monotonic()
        command = children.python(child.module, *child.arguments, str(os.getpid()))
        # The HTTP process keeps the ordinary allocator; the engines' settings are for large tensors.
        environment = children.environment() | dict(child.environment)
        folder = self.plan.empty_folder
        child.process = subprocess.Popen(
            command, env=environment, cwd=folder, start_new_session=True, stderr=subprocess.PIPE
        )
        assert child.process.stderr
        self.log.follow(child.name, child.process.stderr)
        self._say(logging.INFO, f"{child.name} started (pid {child.process.pid}, life {child.lives})")

    def _replace(self, pid: int, exit_code: int) -> None:
        """Starts a dead child again, after a pause that grows while it keeps dying; the others do not wait for it."""
        for child in self._children_of(pid):
            self._count_start(child, pid, exit_code)
            # A process that ran well for a while and dies once is started again at once.
            steady = time.monotonic() - child.started > STEADY_SECONDS
            child.n_deaths = 1 if steady else child.n_deaths + 1
            pause = min(FIRST_PAUSE_SECONDS * 2 ** min(child.n_deaths - 1, 20), LONGEST_PAUSE_SECONDS)
            self._say(logging.ERROR, f"{child.name} (pid {pid}) died; starting it again in {pause:g} s")
            self._start_after(pause, child)

    def _children_of(self, pid: int) -> list[_Child]:
        """The one that is this process; none where it is none of ours."""
        every = (self.http, *self.engines, *self.workers)
        return [child for child in every if child.process and child.process.pid == pid]

    def _count_start(self, child: _Child, pid: int, exit_code: int) -> None:
        """ServerError when one that is needed has died at its start too often."""
        if came_up(self.plan.up_folder, pid):
            child.starts.succeeded()
            return
        reason = reason_of(exit_code, self.log.last_words(child.name))
        if child.starts.in_vain(reason, self.http.lives) and child.is_needed:
            message = f"{child.name} died {MAX_STARTS} times at its start, always alike: {reason}"
            self._say(logging.ERROR, message)
            raise ServerError(f"The server stops: {message}. Its log is {self.log.file}.")

    def _start_due(self) -> None:
        now = time.monotonic()
        ready = [child for due_at, child in self.due if due_at <= now]
        self.due[:] = [(due_at, child) for due_at, child in self.due if due_at > now]
        for child in ready:
            try:
                self._start(child)
            except OSError as error:  # no process or memory to be had right now
                self._say(logging.ERROR, f"{child.name} cannot be started yet: {error}")
                self._start_after(LONGEST_PAUSE_SECONDS, child)
        self._set_alarm()

    def _start_after(self, pause_seconds: float, child: _Child) -> None:
        """An alarm may come between any two steps here, so the list stays the same object."""
        due_at = time.monotonic() + pause_seconds
        self.due.append((due_at, child))
        self._set_alarm()

    def _set_alarm(self) -> None:
        if self.due:
            signal.setitimer(signal.ITIMER_REAL, max(0.001, min(due_at for due_at, _ in self.due) - time.monotonic()))

    def _say(self, level: int, text: str) -> None:
        self.log.say(level, "supervisor", text)

    def _end(self) -> None:
        """Engines first, so that their last words are still heard."""
        self._say(logging.INFO, "ending")
        working = [*self.workers, *self.engines]
        for group, seconds in ((working, ENGINE_GRACE_SECONDS), ([self.http], HTTP_GRACE_SECONDS)):
            processes = [child.process for child in group if child.process]
            for process in processes:
                process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + seconds
            for process in processes:
                try:
                    process.wait(max(0.1, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    # Nothing that was acknowledged is lost by it, since it stands in the journal.
                    process.kill()
                    process.wait()
        self.plan.address_file.unlink(missing_ok=True)


def lock_data(run_folder: Path) -> IO[str]:
    """Keeps a second server off the same data folder, from before the first looks at it; BadRequest for the second."""
    try:
        make_private(run_folder)  # a socket is open to others for a moment, until its own mode is set
        lock = (run_folder / "lock").open("w")
    except OSError as error:
        raise BadRequest(f"{run_folder / 'lock'} cannot be made: {error.strerror}. Is something else there?") from None
    try:
        # The system lets go of such a lock when its process dies, so none is ever left behind.
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BadRequest(
            f"A server is running on {run_folder.parent} already; stop it, or give this one another --data."
        ) from None
    return lock


def _name(plan: ServerPlan, base_model: str, replica: int) -> str:
    """Of an engine, as the log has it."""
    if not replica:
        return base_model
    return f"{base_model} {'replica' if replica <= plan.config.engine.replicas else 'sampler'} {replica}"


def _raise_stop(number: int, frame: FrameType | None) -> NoReturn:
    raise _Stop

"""One process of the sandbox as its owner sees it: started in some way, asked for calls, killed.

What it runs is `sandbox_process.py`. Knows nothing of turns and of which way is best.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from loreloop.learn.rewards.sandbox_process import readable_paths
from loreloop.learn.rewards.walls.calls import MAX_FRAME, Ended, Greeting, Limits, Way
from loreloop.learn.rewards.walls.namespaces import WORK

START_SECONDS = 30.0  # for a process to greet
KEPT_VARIABLES = ("PATH", "TMPDIR")


class NotStarted(Exception):
    """Why a way does not hold here, or not now."""


@dataclass(eq=False)  # told apart by identity: no two are the same
class Worker:
    """One process of the sandbox, and the walls around it."""

    way: Way
    process: asyncio.subprocess.Process
    walls: Sequence[str]

    async def answer(self, frame: bytes, seconds: float) -> Ended | None:
        """None: it has ended, or did not answer in time."""
        assert self.process.stdin
        try:
            async with asyncio.timeout(seconds):
                self.process.stdin.write(frame)
                text = await _frame(self.process)
            return msgspec.json.decode(text, type=Ended)
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError, msgspec.DecodeError):
            return None

    def kill(self) -> None:
        """At once; whatever runs in it goes with it."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()


async def _frame(process: asyncio.subprocess.Process) -> bytes:
    assert process.stdout
    n_bytes = int.from_bytes(await process.stdout.readexactly(4), "big")
    if n_bytes > MAX_FRAME:
        raise ConnectionError(f"a frame of {n_bytes} bytes")
    return await process.stdout.readexactly(n_bytes)


async def start(way: Way) -> Worker:
    """A process that stands in this way and waits for calls; NotStarted says why there is none."""
    command = _command(way)
    pipe, nowhere = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=pipe, stdout=pipe, stderr=nowhere, env=_environment()
        )
    except OSError as error:
        raise NotStarted(f"{command[0]}: {error.strerror}") from None
    worker: Worker | None = None
    try:
        greeting = await _greeting(process)
        if greeting.trouble is not None:
            raise NotStarted(greeting.trouble)
        worker = Worker(way, process, greeting.walls)
    finally:
        # Also where whoever wanted it was cancelled meanwhile.
        if worker is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    return worker


async def _greeting(process: asyncio.subprocess.Process) -> Greeting:
    try:
        async with asyncio.timeout(START_SECONDS):
            return msgspec.json.decode(await _frame(process), type=Greeting)
    except (TimeoutError, ConnectionError, asyncio.IncompleteReadError):
        return Greeting(trouble="its process ended before it was ready")


def _environment() -> dict[str, str]:
    """Nothing that could be a secret goes along. A fixed seed for hashes makes a grader give the same twice."""
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    # An empty entry would mean the working folder, from which nothing is ever imported.
    entries = [os.path.abspath(entry) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    paths = {"PYTHONPATH": os.pathsep.join(entries)} if entries else {}
    return kept | paths | {"PYTHONHASHSEED": "0"}


def _command(way: Way) -> list[str]:
    python = [sys.executable, "-P", "-m", "loreloop.learn.rewards.sandbox_process", way]
    if way != "bubblewrap":
        return python
    # The interpreter of a virtual environment, and this package, may lie elsewhere than what code may read.
    own = [Path(sys.prefix), Path(__file__).parents[2]]
    shown = [
        word for path in [*readable_paths(), *own] if path.exists() for word in ("--ro-bind", str(path), str(path))
    ]
    walls = ["--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    sized = ["--size", str(Limits().disk_bytes), "--tmpfs"]
    folders = ["--dev", "/dev", "--proc", "/proc", *sized, "/tmp", *sized, WORK, "--chdir", WORK]
    return [shutil.which("bwrap") or "bwrap", *walls, *folders, *shown, *python]

"""A server in a process of its own for as long as something runs against it: for the demo, the bench and tests."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from loreloop.host import children
from loreloop.protocol.syncing import Durability


@dataclass(frozen=True)
class RunningServer:
    """`pid` is the supervisor's."""

    url: str
    key: str
    pid: int
    data: Path


@contextmanager
def running_server(
    data: str, arguments: Sequence[str], wait_seconds: float = 120, durability: Durability = "os"
) -> Iterator[RunningServer]:
    """`loreloop serve` on a free port with its data in `data`; always stopped at the end. Such a server's data is
    mostly thrown away with it, so it does not wait for the disk unless it is told to."""
    folder = Path(data)
    command = children.python("loreloop.cli", "serve", "--data", data, "--port", "0", *arguments)
    command += ["--durability", durability]
    command += ["--parent-pid", str(os.getpid())]
    # The key is made before the start, so that the server does not print a first one of its own.
    key = _new_key(folder, durability)
    process = subprocess.Popen(command, env=children.environment(), stdout=subprocess.DEVNULL)
    try:
        # Port 0 takes a free one, so the address is known only from the file.
        url = _address(folder / "run" / "server.json", process, wait_seconds)
        yield RunningServer(url, key, process.pid, folder)
    finally:
        # SIGTERM lets the server answer and write what it has; the supervisor then ends its children.
        process.terminate()
        process.wait(timeout=60)


def _new_key(folder: Path, durability: Durability) -> str:
    from loreloop.store import keys
    from loreloop.store.store import open_database

    database = open_database(folder, durability)
    with database.begin() as connection:
        secret = keys.create(connection, "local", ("admin",), time.time()).secret
    database.dispose()
    return secret


def _address(file: Path, process: subprocess.Popen[bytes], wait_seconds: float) -> str:
    import msgspec

    from loreloop.host.server_plan import Address
    from loreloop.protocol.errors import ServerError

    deadline = time.monotonic() + wait_seconds
    while time.monotonic() < deadline and process.poll() is None:
        if file.exists():
            address = msgspec.json.decode(file.read_bytes(), type=Address)
            if address.pid == process.pid:  # not one that a killed server has left behind
                return address.url
        time.sleep(0.05)
    raise ServerError(f"The server did not start (exit code {process.poll()}); its messages stand above.")

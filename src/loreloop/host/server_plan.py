"""What the supervisor hands to the processes it starts: the settings and the folders of the models, as one file."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import msgspec

from loreloop.config import Config
from loreloop.protocol.folders import make_private

NONCE = "x-loreloop-server"  # the header by which `/healthz` tells which server it is of
LONGEST_SOCKET_PATH = 100  # bytes; the system allows 107


class ServerPlan(msgspec.Struct, frozen=True):
    """`folders` maps base models to their folders; aliases are in the configuration. `nonce` is this start's.
    `hub_ids` are the names under which the world knows models that have another one here; `has_worker` says whether
    fine-tuning jobs can be done."""

    config: Config
    folders: dict[str, str]
    nonce: str = ""
    hub_ids: dict[str, str] = {}
    has_worker: bool = False

    @property
    def run_folder(self) -> Path:
        """The folder for what belongs to a running server alone: socket, address, lock."""
        return self.config.data_path / "run"

    @property
    def empty_folder(self) -> Path:
        """Where all processes of the server work, also the tool servers that they start: nothing lies there that could
        be taken for a module, a setting or a program."""
        return self.run_folder / "empty"

    @property
    def up_folder(self) -> Path:
        """Where processes say that they have come up (`host/starts.py`)."""
        return self.run_folder / "up"

    @property
    def socket(self) -> Path:
        """Where engines find the HTTP process."""
        return self._socket("engine.sock")

    @property
    def worker_socket(self) -> Path:
        """Where the worker of fine-tuning jobs finds it."""
        return self._socket("jobs.sock")

    def _socket(self, name: str) -> Path:
        """Below the data folder, or, where its path is longer than a socket's may be, in the temporary folder."""
        path = self.run_folder.absolute() / name
        if len(bytes(path)) <= LONGEST_SOCKET_PATH:
            return path
        digest = hashlib.sha256(bytes(path)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"loreloop-{digest}.sock"

    @property
    def address_file(self) -> Path:
        """Holds the server's URL while it runs."""
        return self.run_folder / "server.json"

    @property
    def file(self) -> Path:
        """Where the plan itself lies, for the processes that read it."""
        return self.run_folder / "plan.json"

    def write(self) -> None:
        """Writes the plan for the processes that are about to start."""
        make_private(self.run_folder)
        self.file.write_bytes(msgspec.json.encode(self))


def read_plan(path: str) -> ServerPlan:
    """The plan that the supervisor has written."""
    return msgspec.json.decode(Path(path).read_bytes(), type=ServerPlan)


def running_address(config: Config) -> Address | None:
    """Where the server of a data folder answers, if it runs. OSError where this user may not look."""
    try:
        address = msgspec.json.decode(ServerPlan(config, {}).address_file.read_bytes(), type=Address)
    except (FileNotFoundError, msgspec.DecodeError):  # none
        return None
    try:
        # Signal 0 reaches nobody; it only tells whether the process exists.
        os.kill(address.pid, 0)
    except ProcessLookupError:  # it was killed
        return None
    except PermissionError:  # of another user, but there
        pass
    return address


class Address(msgspec.Struct, frozen=True):
    """Contents of the address file."""

    url: str
    pid: int
    nonce: str = ""

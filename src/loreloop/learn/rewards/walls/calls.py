"""What the server and the sandbox's process say to each other: one call of code, its limits, and how it ended.

Frames on a pipe: four bytes of length, then JSON. Plain dataclasses, since the process that runs code loads as little
as it can.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

MiB = 1 << 20
MAX_FRAME = 64 * MiB
Limit = Literal["time", "cpu", "memory", "output", "disk"]
Way = Literal["namespaces", "bubblewrap", "landlock", "limits"]


@dataclass(frozen=True)
class Limits:
    """Bounds of one call. `seconds` is the time that passes, `cpu_seconds` that of one process's computing (whole ones
    are counted); `memory_bytes` is each process's address space and all processes' memory together."""

    seconds: float = 10.0
    cpu_seconds: int = 10
    memory_bytes: int = 512 * MiB
    file_bytes: int = 16 * MiB
    disk_bytes: int = 64 * MiB
    processes: int = 16
    open_files: int = 64
    output_bytes: int = MiB  # of what is printed, and of the result as JSON


@dataclass(frozen=True)
class Request:
    """Code to run, and the function of it to call; without one, the code is all."""

    code: str
    function: str | None
    arguments: tuple[Any, ...]
    limits: Limits


@dataclass(frozen=True)
class Ended:
    """How a call ended. `result_json` None: there is none, and `error` says why; `exception` is the error's class where
    the code raised it. `stdout` holds what was printed, errors included."""

    stdout: str = ""
    result_json: str | None = None
    error: str | None = None
    exception: str | None = None
    seconds: float = 0.0
    limit: Limit | None = None


@dataclass(frozen=True)
class Greeting:
    """The first frame of the process: which walls stand, or why they do not."""

    walls: Sequence[str] = ()
    trouble: str | None = None


def request_of(text: bytes) -> Request:
    """A request as `frame_of` wrote it."""
    plain = json.loads(text)
    plain["limits"] = Limits(**plain["limits"])
    plain["arguments"] = tuple(plain["arguments"])
    return Request(**plain)


def frame_of(value: Request | Ended | Greeting) -> bytes:
    """A value with its length before it. Surrogates, which code can print, stay escaped."""
    text = json.dumps(asdict(value)).encode()
    return len(text).to_bytes(4, "big") + text


def read_frame(handle: int) -> bytes | None:
    """The next frame without its length; None at the end of the pipe."""
    # A pipe may end within a frame where its writer was killed; half a length is then the end like none.
    head = _read(handle, 4)
    return _read(handle, int.from_bytes(head, "big")) if len(head) == 4 else None


def write_all(handle: int, data: bytes) -> None:
    """Writes everything, however little the pipe takes at once."""
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def _read(handle: int, n_bytes: int) -> bytes:
    parts = []
    while n_bytes and (part := os.read(handle, min(n_bytes, MiB))):
        parts.append(part)
        n_bytes -= len(part)
    return b"".join(parts)

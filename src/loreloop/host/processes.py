"""The processes of a running server, as the system knows them: who they are, what memory they hold, how long they ran.

Read from /proc, so that a mesh's ranks, the walls around code and tool servers are there too, which tell nobody of
themselves. Knows nothing of what they compute.
"""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

import msgspec

OURS = "loreloop."
AFTER_NAME = 2  # fields of /proc/PID/stat that stand up to the name's end
PARENT, USER_TICKS, SYSTEM_TICKS, STARTED_TICKS, PAGES = 3, 13, 14, 21, 23  # of all its fields, from 0


class Process(msgspec.Struct, frozen=True):
    """`role` is what it does here, or the program's name; `engine` is the base model and the number of the engine that
    it is, as in `tiny 0`, empty for others."""

    pid: int
    parent: int
    role: str
    engine: str
    resident_bytes: int
    processor_seconds: float
    age_seconds: float


def processes_below(pid: int) -> list[Process]:
    """A process and all that it has started, and so on; by their numbers. One that ends meanwhile is left out."""
    found = {each.pid: each for each in map(_read, _numbers()) if each is not None}
    children: dict[int, list[int]] = defaultdict(list)
    for each in found.values():
        children[each.parent].append(each.pid)
    seen, waiting = set[int](), [pid]
    while waiting:
        number = waiting.pop()
        if number in found and number not in seen:
            seen.add(number)
            waiting += children[number]
    return [found[number] for number in sorted(seen)]


def _numbers() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdecimal()]
    except OSError:  # no such system
        return []


def _read(pid: int) -> Process | None:
    place = Path("/proc", str(pid))
    try:
        # The name stands in brackets and may hold anything, brackets too.
        fields = (place / "stat").read_text(errors="replace").rpartition(")")[2].split()
        words = (place / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
        uptime = float(Path("/proc/uptime").read_text().split()[0])
    except OSError:
        return None
    ticks = os.sysconf("SC_CLK_TCK")

    def number(index: int) -> int:
        return int(fields[index - AFTER_NAME])

    role, engine = _role_of(words)
    return Process(
        pid=pid,
        parent=number(PARENT),
        role=role,
        engine=engine,
        resident_bytes=number(PAGES) * os.sysconf("SC_PAGE_SIZE"),
        processor_seconds=(number(USER_TICKS) + number(SYSTEM_TICKS)) / ticks,
        age_seconds=max(0.0, uptime - number(STARTED_TICKS) / ticks),
    )


def _role_of(words: list[str]) -> tuple[str, str]:
    """What a command line starts, and the engine that it is."""
    if "-m" not in words[:-1]:
        program = Path(words[0]).name if words else "ended"
        # The command that people type, which is a script of the package.
        return ("supervisor" if "serve" in words else program), ""
    at = words.index("-m") + 1
    module, arguments = words[at], words[at + 1 :]
    if not module.startswith(OURS):
        return module, ""
    match module.rpartition(".")[2], arguments:
        case "cli", ["serve", *_]:
            return "supervisor", ""
        case "http_process", _:
            return "http", ""
        case "job_process", _:
            return "jobs", ""
        case "engine_process", [_, model, number, *_]:
            return "engine", f"{model} {number}"
        case name, _:
            return name, ""

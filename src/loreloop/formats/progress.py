"""Shows how far something is that makes a folder grow: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BAR_CELLS = 20
LOOK_SECONDS, LINE_SECONDS = 0.2, 10.0  # on a terminal; elsewhere


@contextmanager
def shown(doing: str, folder: Path, n_bytes: int) -> Iterator[None]:
    """While the context lasts, on standard error. `n_bytes` is what the folder will hold in the end, about."""
    # In a log file a bar would be thousands of characters of one line.
    terminal, ended, started = sys.stderr.isatty(), threading.Event(), time.monotonic()

    def line(size: int) -> str:
        share = min(size / n_bytes, 1.0)
        bar = "#" * round(share * BAR_CELLS)
        figures = f"{share:4.0%}  {size >> 20} of {n_bytes >> 20} MiB  {time.monotonic() - started:.0f} s"
        return f"\r{doing}  [{bar:<{BAR_CELLS}}] {figures} " if terminal else f"{doing}: {figures}\n"

    def watch() -> None:
        while not ended.wait(LOOK_SECONDS if terminal else LINE_SECONDS):
            _say(line(size_of(folder)))

    _say(line(0) if terminal else f"{doing}: about {n_bytes >> 20} MiB …\n")
    # A daemon, so that it never keeps the process alive after an error.
    watching = threading.Thread(target=watch, name="progress", daemon=True)
    watching.start()
    try:
        yield
    finally:
        ended.set()
        watching.join()
        _say(line(size_of(folder)) + ("\n" if terminal else ""))


def size_of(folder: Path) -> int:
    """Bytes of all files below it; files that go away meanwhile count as nothing."""
    size = 0
    for file in folder.rglob("*"):
        try:
            size += file.stat().st_size if file.is_file() else 0
        except OSError:
            continue
    return size


def _say(text: str) -> None:
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (OSError, ValueError):  # nobody looks
        return

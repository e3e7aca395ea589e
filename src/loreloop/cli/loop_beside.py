"""A loop in a process of its own beside a demo: started, watched through its folder, and ended with it.

Knows the files of a loop's folder and nothing of what the demo shows.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from loreloop.host import children
from loreloop.learn.loop.by_hand import begun
from loreloop.learn.loop.state import Decision, LoopFolder, State
from loreloop.protocol.errors import ServerError

FINAL = ("rejected", "promoted", "rolled_back", "void", "adopted")
LOOK_SECONDS = 0.2


@dataclass
class LoopBeside:
    """`loreloop loop run FILE`, whose words go to `log`."""

    file: Path
    log: Path
    key: str
    folder: LoopFolder = field(init=False)
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.folder = LoopFolder(self.file.with_suffix(".state"))

    @contextmanager
    def running(self, seconds: float = 120) -> Iterator[None]:
        """Runs the loop while the block lasts, which begins when the loop has."""
        command = children.python("loreloop.cli", "loop", "run", str(self.file))
        environment = children.environment() | {"LORELOOP_API_KEY": self.key, "TINKER_TELEMETRY": "0"}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, env=environment, stderr=log, stdout=log)
            try:
                self.until(self.folder.state_file.exists, seconds)
                yield
            finally:
                self.process.terminate()
                self.process.wait(timeout=60)

    def state(self) -> State:
        """Where the loop stands."""
        return begun(self.folder)

    def why(self) -> str:
        """Why nothing was promoted yet, in the loop's words."""
        return str(self.folder.why()["sentence"])

    def ended(self, candidate: str | None = None) -> Sequence[Decision]:
        """The decisions with which cycles came to their ends; with a candidate, those about it alone."""
        found = [one for one in self.folder.decisions() if one.verdict in FINAL and one.stage != "person"]
        return [one for one in found if candidate in (None, one.candidate)]

    def until(self, fine: Callable[[], bool], seconds: float, meanwhile: Callable[[], None] | None = None) -> None:
        """Waits; `meanwhile` is done while a canary is on, since one that nobody meets is never decided. ServerError
        where the loop has ended, or the time has passed."""
        ends = time.monotonic() + seconds
        while not fine():
            if self.process is not None and self.process.poll() is not None:
                raise ServerError(f"The demo's loop has ended before its time; its words are in {self.log}.")
            if time.monotonic() > ends:
                raise ServerError(f"The demo's loop did not come on within {seconds:g} s; its words are in {self.log}.")
            if meanwhile is not None and self.state().stage == "canary":
                meanwhile()
            else:
                time.sleep(LOOK_SECONDS)

"""`trl_grpo.py` as a side of a row: a process that takes a step when asked, and idles while the other sides run."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

PROGRAM = Path(__file__).parent / "trl_grpo.py"
MICRO_BATCH = 32  # the best of 16, 32, 64 and 128


class TrlProcess:
    """The program with its model loaded, in the environment of the given python."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._answer()

    def step(self) -> None:
        assert self._process.stdin
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self._answer()

    def _answer(self) -> None:
        assert self._process.stdout
        if not self._process.stdout.readline():
            raise RuntimeError(f"{PROGRAM.name} ended with {self._process.wait()}; its own words stand above.")


@contextmanager
def trl_process(python: str, folder: Path) -> Iterator[TrlProcess]:
    """As many threads as this process has; -E keeps our paths out of the other environment."""
    command = [python, "-E", str(PROGRAM), str(folder), "--micro-batch", str(MICRO_BATCH)]
    settings = {"OMP_NUM_THREADS": str(torch.get_num_threads()), "HF_HUB_OFFLINE": "1"}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=os.environ | settings) as process:
        try:
            yield TrlProcess(process)
        finally:
            process.terminate()

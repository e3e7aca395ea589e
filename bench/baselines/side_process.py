"""A side of a row that wants libraries other than ours: a process that works when asked, and idles while others run."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch


class SideProcess:
    """A program of this folder that says a line when it is ready, and one for each line it has dealt with."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._answer()

    def work(self, line: str = "") -> None:
        assert self._process.stdin
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        self._answer()

    def _answer(self) -> None:
        assert self._process.stdout
        if not self._process.stdout.readline():
            raise RuntimeError(f"A baseline ended with {self._process.wait()}; its own words stand above.")


@contextmanager
def side_process(python: str, program: str, arguments: Sequence[object]) -> Iterator[SideProcess]:
    """`program` in the environment of the given python, with as many threads as this process has.

    -E keeps our paths out of the other environment.
    """
    command = [python, "-E", str(Path(__file__).parent / program), *map(str, arguments)]
    settings = {"OMP_NUM_THREADS": str(torch.get_num_threads()), "HF_HUB_OFFLINE": "1"}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=os.environ | settings) as process:
        try:
            yield SideProcess(process)
        finally:
            process.terminate()

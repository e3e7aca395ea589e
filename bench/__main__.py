"""`python -m bench [ROW …]`: runs rows, prints their figures and writes them to bench/results/."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import torch

from bench.rig import Figure
from bench.rows import ROWS
from loreloop.cli.serve import MEMORY

RESULTS = Path(__file__).parent / "results"


def main(names: list[str]) -> None:
    unknown = [name for name in names if name not in ROWS]
    if unknown:
        sys.exit(f"There is no row {unknown[0]!r}; rows are {', '.join(ROWS)}.")
    for name in names or list(ROWS):
        if len(names) == 1:
            _run(name)
        else:  # a process for each, so that none inherits another's memory
            subprocess.run([sys.executable, "-m", "bench", name], check=True)


def _run(name: str) -> None:
    started = time.monotonic()
    figures = ROWS[name]()
    record = {
        "row": name,
        "about": " ".join((ROWS[name].__doc__ or "").split()),
        "figures": [_record(figure) for figure in figures],
        "seconds": round(time.monotonic() - started, 1),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    for figure in figures:
        print(f"{name:<15} {figure.name:<52} {figure.value:>10.4g} {figure.unit:<9} {_verdict(figure)}", flush=True)


def _record(figure: Figure) -> dict[str, object]:
    fields = msgspec.to_builtins(figure) | {"value": float(f"{figure.value:.5g}"), "met": figure.met}
    return {name: value for name, value in fields.items() if value is not None}


def _verdict(figure: Figure) -> str:
    wanted = f">= {figure.at_least}" if figure.at_least is not None else f"<= {figure.at_most}"
    return "" if figure.met is None else f"{wanted}: {'met' if figure.met else 'NOT MET'}"


if __name__ == "__main__":
    if any(os.environ.get(name) != value for name, value in MEMORY.items()):
        # The allocator reads its settings once, at the start; both sides of every row get those of `loreloop serve`.
        os.execve(sys.executable, [sys.executable, "-m", "bench", *sys.argv[1:]], os.environ | MEMORY)
    main(sys.argv[1:])

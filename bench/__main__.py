"""Runs one row or all of them; every figure is a median over alternating repeats in this run."""

import json
import platform
import sys
import time
from pathlib import Path

import torch

from bench.rows import ROWS

RESULTS = Path(__file__).parent / "results"


def main(names: list[str]) -> None:
    unknown = [name for name in names if name not in ROWS]
    if unknown:
        sys.exit(f"There is no row {unknown[0]!r}; rows are {', '.join(ROWS)}.")
    for name in names or list(ROWS):
        started = time.monotonic()
        figures = ROWS[name]()
        about = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__}
        record = {"row": name, "figures": figures, "seconds": round(time.monotonic() - started, 1), **about}
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
        for figure, value in figures.items():
            print(f"{name:<10} {figure:<44} {value:>12.5g}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

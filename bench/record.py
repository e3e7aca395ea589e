"""What a result says about itself, beside its figures: when, where, of which commit and with which versions."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import msgspec

from bench.rig import Figure

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parents[1]
COMMIT = "LORELOOP_BENCH_COMMIT"  # says it where there is no git
PACKAGES = ("torch", "triton", "transformers", "peft", "tinker", "numpy")


def write_record(folder: Path, name: str, about: str, figures: Sequence[Figure], **facts: object) -> None:
    """`facts` come beside what is known here: seconds, a device, a peer's versions; they may be dataclasses."""
    record = {
        "row": name,
        "about": " ".join(about.split()),
        "figures": [_record(figure) for figure in figures],
        **facts,
        **about_the_run(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(msgspec.to_builtins(record), indent=1) + "\n")


def about_the_run() -> dict[str, object]:
    """The machine, the versions, the commit and the day, as every record has them."""
    return {
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "processor": processor(),
        "versions": versions(),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _record(figure: Figure) -> dict[str, object]:
    fields = msgspec.to_builtins(figure) | {"met": figure.met}
    if figure.value is not None:
        fields["value"] = float(f"{figure.value:.5g}")
    return {name: value for name, value in fields.items() if value is not None}


def processor() -> str | None:
    """What the system calls it; None where it does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)


def versions() -> dict[str, str]:
    """Of the libraries that this process has loaded."""
    loaded = (name for name in PACKAGES if name in sys.modules)
    return {name: str(getattr(sys.modules[name], "__version__", None) or metadata.version(name)) for name in loaded}


def commit() -> str | None:
    """The commit of the code; a + behind it says that the code had changes. Results and docs are no code."""
    try:
        named = _git("rev-parse", "HEAD")
        return named + ("+" if _git("status", "--porcelain", "--", "src", "bench", ":!bench/results") else "")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get(COMMIT)


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def line(row: str, figure: Figure) -> str:
    """A figure as it is printed."""
    value = f"{figure.value:>10.4g} {figure.unit:<9}" if figure.value is not None else f"not measured: {figure.missing}"
    if figure.met is None:
        return f"{row:<15} {figure.name:<52} {value}"
    wanted = f">= {figure.at_least}" if figure.at_least is not None else f"<= {figure.at_most}"
    return f"{row:<15} {figure.name:<52} {value} {wanted}: {'met' if figure.met else 'NOT MET'}"

"""`python -m tests.fuzz --cases N [--target NAME]`: guided by what of the code a case reaches, for ever new cases.

What was found to reach something new is kept in `.cache/fuzz`, and the next run begins from it. A case that fails is
written there too, and named with the line that repeats it.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

from tests.fuzz.targets import TARGETS, close

PLACE = Path(".cache") / "fuzz"
HANG_SECONDS, MOST_MIB, LONGEST_BYTES = 30, 4096, 2048
SLOW_SHARE = 20  # of a target whose cases take milliseconds there are so many times fewer
GUIDING = ["loreloop.http", "loreloop.protocol", "loreloop.text", "loreloop.formats", "tests.fuzz.source"]


def shares(cases: int, names: list[str]) -> dict[str, int]:
    """How many cases each target has of so many together."""
    weights = {name: 1 if TARGETS[name].slow else SLOW_SHARE for name in names}
    return {name: max(1, cases * weight // sum(weights.values())) for name, weight in weights.items()}


def run(name: str, cases: int, place: Path) -> int:
    """Runs a target in a process of its own; gives how many cases ran, and raises SystemExit where one failed."""
    command = [sys.executable, "-m", "tests.fuzz", "--in-this-process", "--target", name, "--cases", str(cases)]
    command += ["--place", str(place)]
    done = subprocess.run(command, capture_output=True, text=True)
    ran = re.search(r"Done (\d+) (?:runs|in)", done.stderr)
    if done.returncode or not ran:
        case = re.search(r"Test unit written to (\S+)", done.stderr)
        print(done.stdout[-4000:], done.stderr[-8000:], sep="\n")
        where = case[1] if case else "FILE"
        sys.exit(f"{name} failed. Again: python -m tests.fuzz --target {name} --repeat {where}")
    return int(ran[1])


def guided(name: str, cases: int, place: Path) -> None:
    """Never returns: the library ends the process."""
    import atheris

    from loreloop.protocol.syncing import promise

    promise("os")
    with atheris.instrument_imports(include=GUIDING, enable_loader_override=False):
        TARGETS[name].check(TARGETS[name].seeds()[0])  # what it imports is imported here
    corpus = place / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(TARGETS[name].seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    bounds = [f"-runs={cases}", f"-timeout={HANG_SECONDS}", f"-rss_limit_mb={MOST_MIB}", f"-max_len={LONGEST_BYTES}"]
    atheris.Setup([name, *bounds, f"-artifact_prefix={place / name}-", str(corpus)], TARGETS[name].check)
    try:
        atheris.Fuzz()
    finally:
        close()


def main() -> None:
    """Runs targets, or one case of one again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--target", choices=TARGETS)
    parser.add_argument("--repeat", type=Path, metavar="FILE")
    parser.add_argument("--place", type=Path, default=PLACE, help="where cases are kept")
    parser.add_argument("--in-this-process", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.repeat:
        try:
            TARGETS[asked.target].check(asked.repeat.read_bytes())
        finally:
            close()
    elif asked.in_this_process:
        guided(asked.target, asked.cases, asked.place)
    else:
        names = [asked.target] if asked.target else list(TARGETS)
        ran = {name: run(name, cases, asked.place) for name, cases in shares(asked.cases, names).items()}
        for name, n in ran.items():
            print(f"{name:<12} {n:>12,} cases")
        print(f"{sum(ran.values()):,} cases, and none failed.")


if __name__ == "__main__":
    main()

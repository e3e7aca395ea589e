"""Builds the C files for this machine, once, and keeps the library in the user's cache folder.

Takes a C compiler (`$CC`, `cc` or `gcc`) and some seconds. Without one there is no library, and the callers go on
with the tensor library's own steps. LORELOOP_KERNELS=0 turns kernels off; LORELOOP_ISA chooses a level (`isa.py`).
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from loreloop.kernels import isa

HERE = Path(__file__).parent
SOURCES = [HERE / name for name in ("cpu.c", "attention.c", "bf16_products.c", "packed_products.c", "vocab.c")]
HEADERS = [HERE / name for name in ("numbers.h", "simd.h", "pairs.h")]
FLAGS = ["-O3", "-fopenmp", "-shared", "-fPIC"]
FLAGS += ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-Wno-psabi"]
SECONDS = 300  # a busy machine takes a minute; without the kernels everything after is slow


@functools.cache
def library() -> ctypes.CDLL | None:
    """The kernels, or None where they are turned off or cannot be built."""
    compiler = find_compiler()
    if os.environ.get("LORELOOP_KERNELS") == "0" or compiler is None or sys.platform != "linux":
        return None
    level = isa.level()
    try:
        # A failed build must not keep a server from starting: everything works without kernels, only slower.
        return ctypes.CDLL(str(built(compiler, level)))
    except (OSError, subprocess.SubprocessError) as error:
        why = f"it did not end in {SECONDS} s" if isinstance(error, subprocess.TimeoutExpired) else error
        print(f"The CPU kernels could not be built with {compiler}; going on without them: {why}", file=sys.stderr)
        return None


def find_compiler() -> str | None:
    """The path of the C compiler to be used."""
    # A user's own choice of a compiler goes before the machine's default.
    return next(filter(None, map(shutil.which, (os.environ.get("CC", ""), "cc", "gcc"))), None)


def built(compiler: str, level: isa.Level | None) -> Path:
    """The library for a level, which need not be one of this processor; None: for this processor as it is. Errors are
    those of `subprocess.run`."""
    flags = [*FLAGS, *(level.compiler_flags if level else ("-march=native",))]
    # The key covers all that the machine code depends on, so that a new version or another machine never loads a stale
    # file.
    told_apart = [*(source.read_text() for source in SOURCES + HEADERS), *flags, compiler, _version(compiler)]
    key = hashlib.sha256("\0".join(told_apart + ([] if level else [_processor()])).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "loreloop"
    target = folder / f"{level.name if level else 'cpu'}-{key}.so"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        # Two processes may build at once. Each writes a file of its own, and the rename puts a complete one in place.
        unfinished = target.with_suffix(f".{os.getpid()}.tmp")
        command = [compiler, *flags, "-o", str(unfinished), *map(str, SOURCES), "-lm"]
        subprocess.run(command, check=True, capture_output=True, timeout=SECONDS)
        unfinished.rename(target)
    return target


def _version(compiler: str) -> str:
    """What the compiler says that it is: an update keeps its path."""
    return subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=SECONDS).stdout


def _processor() -> str:
    """What `-march=native` depends on; a cache folder may be shared by machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        return ""

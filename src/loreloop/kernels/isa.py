"""Which of the instruction sets that the kernels are written for this processor has.

The C files are compiled for one level at a time; the highest that the processor has is used. LORELOOP_ISA names a lower
one, for tests and comparisons. Knows no kernels and loads no libraries.
"""

from __future__ import annotations

import functools
import os
import platform
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "LORELOOP_ISA"
_COMPILERS_NAME = {"bmi1": "bmi", "avx512_bf16": "avx512bf16"}


@dataclass(frozen=True)
class Level:
    """Instructions that go together."""

    name: str
    needs: frozenset[str]  # of the flags that Linux shows for a processor
    compiler_flags: tuple[str, ...]
    library_limits: tuple[tuple[str, str], ...]  # environment variables that hold the tensor library down to the same


def _widened(level: Level, name: str, flags: str, limits: tuple[tuple[str, str], ...], *compiler: str) -> Level:
    needs = flags.split()
    own = tuple("-m" + _COMPILERS_NAME.get(flag, flag) for flag in needs)
    return Level(name, level.needs | set(needs), level.compiler_flags + own + compiler, limits)


# What every x86-64 processor has; there are no vectors of our own for it.
_PLAIN = Level("x86-64", frozenset(), ("-march=x86-64",), ())
AVX2 = _widened(
    _PLAIN, "avx2", "avx2 fma f16c bmi1 bmi2", (("ATEN_CPU_CAPABILITY", "avx2"), ("ONEDNN_MAX_CPU_ISA", "AVX2"))
)
AVX512 = _widened(
    AVX2,
    "avx512",
    "avx512f avx512bw avx512vl avx512dq avx512cd",
    (("ATEN_CPU_CAPABILITY", "avx512"), ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")),
    "-mprefer-vector-width=512",
)
AVX512BF16 = _widened(
    AVX512, "avx512bf16", "avx512_bf16", (("ATEN_CPU_CAPABILITY", "avx512"), ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16"))
)
LEVELS = (AVX512BF16, AVX512, AVX2)  # the highest first


@functools.cache
def level() -> Level | None:
    """The level that kernels are used at; None: this processor has none of them."""
    here = [level for level in LEVELS if level.needs <= processor_flags()]
    wanted = os.environ.get(VARIABLE)
    if not wanted:
        return here[0] if here else None
    # A level that is not there would end the process at its first instruction, with nothing said.
    if wanted not in {level.name for level in here}:
        names = ", ".join(level.name for level in here) or "none of the levels"
        raise ValueError(f"LORELOOP_ISA is {wanted!r}; this processor has {names}.")
    return next(level for level in here if level.name == wanted)


def has_tiles() -> bool:
    """Whether the tensor library multiplies bf16 by tiles (AMX) here, which no level of ours does."""
    return "amx_bf16" in processor_flags() and not os.environ.get(VARIABLE)


def library_limits() -> dict[str, str]:
    """Environment variables that hold the tensor library down where LORELOOP_ISA holds the kernels down; they must be
    set before it is loaded."""
    chosen = level() if os.environ.get(VARIABLE) else None
    return dict(chosen.library_limits) if chosen else {}


@functools.cache
def processor_flags() -> frozenset[str]:
    """What Linux says that this processor has; empty for other kinds of processor than x86-64, and elsewhere."""
    if platform.machine() != "x86_64":
        return frozenset()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), ":").partition(":")[2].split())

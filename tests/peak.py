"""How much memory Python takes for a piece of work, measured in a process of its own.

`tracemalloc` cannot be turned on where other libraries' threads run: one of them that begins to call Python at that
moment ends the process with a segmentation fault (CPython before 3.12.9). The SDK's transport has such threads for as
long as its process lives, so whichever test comes later would end, and all that wait behind it.
"""

from __future__ import annotations

import multiprocessing
import tracemalloc
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def with_peak_bytes(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> tuple[T, int]:
    """What a function of a module gives, and the most bytes that its Python objects took at a time."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_traced, (work, args, kwargs))


def _traced(work: Callable[..., T], args: tuple[object, ...], kwargs: dict[str, object]) -> tuple[T, int]:
    tracemalloc.start()
    given = work(*args, **kwargs)
    return given, tracemalloc.get_traced_memory()[1]

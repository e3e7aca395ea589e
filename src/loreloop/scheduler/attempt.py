"""The type of `loop.attempt`, which training and sampling call the engine through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from loreloop.protocol.training import Failure

T = TypeVar("T")


class Attempt(Protocol):
    """Runs a call into the engine; an error comes back as the failure to answer with."""

    def __call__(self, call: Callable[[], T]) -> T | Failure: ...

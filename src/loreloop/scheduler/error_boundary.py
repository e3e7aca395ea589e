"""How the loop calls the engine: an error there ends one operation, never the loop."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol, TypeVar

from loreloop.protocol.errors import NOT_THERE, LoreloopError, Unavailable, disk_trouble, outcome_of
from loreloop.protocol.training import Failure

T = TypeVar("T")
LOG = logging.getLogger(__name__)


class ErrorBoundary(Protocol):
    """Runs a call into the engine; an error comes back as the failure to answer with."""

    def __call__(self, call: Callable[[], T]) -> T | Failure: ...


def within_boundary(call: Callable[[], T]) -> T | Failure:
    """Runs a call into the engine. What goes wrong there ends as a failure of the operation that asked."""
    # The error must not become a local of this function: it would keep the engine's frames, and what lies in them.
    return _answered(outcome_of(call))


def _answered(outcome: T | Exception) -> T | Failure:
    if not isinstance(outcome, Exception):
        return outcome
    if isinstance(outcome, LoreloopError):
        return Failure(outcome.category, outcome.message, passing=isinstance(outcome, Unavailable))
    if trouble := disk_trouble(outcome):
        LOG.error("%s", trouble.message)
        return Failure(trouble.category, trouble.message, passing=True)
    LOG.error("an operation failed in the engine", exc_info=outcome)
    message = f"The engine failed: {type(outcome).__name__}: {outcome}. Its log holds the details."
    return Failure("server", message, passing=isinstance(outcome, OSError) and outcome.errno not in (None, *NOT_THERE))

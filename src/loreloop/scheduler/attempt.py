"""How the loop calls the engine: an error there ends one operation, never the loop."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol, TypeVar

from loreloop.protocol.errors import NOT_THERE, LoreloopError, Unavailable, disk_trouble
from loreloop.protocol.training import Failure

T = TypeVar("T")
LOG = logging.getLogger(__name__)


class Attempt(Protocol):
    """Runs a call into the engine; an error comes back as the failure to answer with."""

    def __call__(self, call: Callable[[], T]) -> T | Failure: ...


def attempt(call: Callable[[], T]) -> T | Failure:
    """Runs a call into the engine. What goes wrong there ends as a failure of the operation that asked."""
    try:
        return call()
    except LoreloopError as error:
        return Failure(error.category, error.message, passing=isinstance(error, Unavailable))
    except Exception as error:
        if trouble := disk_trouble(error):
            LOG.error("%s", trouble.message)
            return Failure(trouble.category, trouble.message, passing=True)
        LOG.exception("an operation failed in the engine")
        message = f"The engine failed: {type(error).__name__}: {error}. Its log holds the details."
        return Failure("server", message, passing=isinstance(error, OSError) and error.errno not in (None, *NOT_THERE))

"""What feedback may be about: turns and episodes that a deployment has issued, also while they are on their way.

The recorder knows them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from loreloop.store.turns import Known


class Targets(Protocol):
    """Where turns and episodes are looked up."""

    def issued(self, id: str) -> Sequence[Known]:
        """The turn of this id, or else all episodes of this id, which clients choose."""
        ...

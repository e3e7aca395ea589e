"""What feedback may be about: turns and episodes that a recording deployment has issued, also while they are on their
way into the store. Where they are looked up is passed in.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, Protocol

import msgspec

from loreloop.protocol.feedback import Level

# Kept, on its way into the store, lost for want of room, or gone with its time.
State = Literal["kept", "pending", "dropped", "expired"]


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A turn or an episode; `key_id` is that of the key which asked."""

    id: str
    level: Level
    deployment: str
    key_id: str
    state: State = "kept"


class Targets(Protocol):
    """Where turns and episodes are looked up."""

    def find(self, id: str) -> Target | None:
        """The turn, or else the episode, of this id; None where no recording deployment has issued it."""
        ...


class NamedTargets:
    """Those of a table: for tests, and for a server that records nothing."""

    def __init__(self, targets: Mapping[str, Target] = MappingProxyType({})) -> None:
        self.targets = dict(targets)

    def find(self, id: str) -> Target | None:
        """The one in the table."""
        return self.targets.get(id)

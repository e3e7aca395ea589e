"""What feedback may be about: turns and episodes that a recording deployment has issued, also while they are on their
way into the store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, Protocol

import msgspec

from loreloop.host.recorder import Recorder
from loreloop.protocol.feedback import Level
from loreloop.store import turn_places
from loreloop.store.store import Store
from loreloop.store.turn_bodies import NewTurn

# Kept, on its way into the store, lost for want of room, gone with its time, or never to be kept.
State = Literal["kept", "pending", "dropped", "expired", "unrecorded"]


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A turn or an episode; `key_id` is that of the key which asked."""

    id: str
    level: Level
    deployment: str
    key_id: str
    state: State = "kept"


class Targets(Protocol):
    """Where turns and episodes are looked up."""

    def find(self, id: str) -> Sequence[Target]:
        """The turn of this id, or else all episodes of this id, which clients choose."""
        ...


class NamedTargets:
    """Those of a table, for tests."""

    def __init__(self, targets: Mapping[str, Target] = MappingProxyType({})) -> None:
        self.targets = dict(targets)

    def find(self, id: str) -> Sequence[Target]:
        """The one in the table."""
        return [self.targets[id]] if id in self.targets else []


@dataclass(frozen=True)
class RecordedTargets:
    """What a server has recorded, or is about to."""

    store: Store
    recorder: Recorder

    def find(self, id: str) -> Sequence[Target]:
        """What the recorder still holds goes first: its turns are in no table yet."""
        waiting: tuple[tuple[Mapping[str, NewTurn], State], ...] = (
            (self.recorder.pending, "pending"),
            (self.recorder.dropped, "dropped"),
            (self.recorder.unrecorded, "unrecorded"),
        )
        for traces, state in waiting:
            if (trace := traces.get(id)) is not None:
                return [_target(id, "inference", trace, state)]
        if (turn := self.store.read(turn_places.of_turn, id)) is not None:
            return [_target(id, "inference", turn, turn.state)]
        found = {
            (place.deployment, place.key_id): _target(id, "episode", place, place.state)
            for place in self.store.read(turn_places.of_episodes, id)
        }
        # An episode begins with its first turn, which may be on its way as well.
        for trace in self.recorder.pending.values():
            if trace.episode_id == id:
                found.setdefault((trace.deployment, trace.key_id), _target(id, "episode", trace, "pending"))
        return [*found.values()]


def _target(id: str, level: Level, place: NewTurn | turn_places.Place, state: State) -> Target:
    return Target(id=id, level=level, deployment=place.deployment, key_id=place.key_id, state=state)

"""What a memory is to the place that keeps it: bytes with a revision. Does not know what the bytes say."""

from __future__ import annotations

import secrets
from typing import Protocol

import msgspec

FIRST_REVISIONS = 1 << 48  # numbers that JSON carries exactly, with room for saves


class Saved(msgspec.Struct, frozen=True):
    """`revision` goes up by one with each save of one memory; who saves says which one it goes on from."""

    data: bytes
    revision: int


class StateStore(Protocol):
    """`load` gives None for an unknown id. `save` raises Conflict when the stored revision is not `after` (0: none
    yet), so of two writers one is refused; it either stores all of `data` or leaves what was there."""

    def load(self, id: str) -> Saved | None:
        """The stored bytes and their revision, or None for an id that nothing is stored under."""

    def save(self, id: str, data: bytes, after: int) -> Saved:
        """Stores `data` as the revision after `after`, and gives it back with its new revision. Conflict where
        another revision is stored."""

    def delete(self, id: str) -> None:
        """Forgets a memory; an unknown id is no error."""


def first_revision() -> int:
    """Drawn, so that a writer who goes on from a memory that was deleted and begun anew meanwhile is refused too."""
    return 1 + secrets.randbelow(FIRST_REVISIONS)


def told_conflict(id: str, after: int, stored: int) -> str:
    """What the second of two writers is told."""
    found = f"revision {stored} is stored" if stored else "none is stored"
    return (
        f"Memory {id!r} was to be saved after revision {after}, and {found}: another writer was here. Load it again "
        "and repeat the change."
    )

"""What is kept of operations that the database has lost, and of which of them an operator has been told.

Segments are kept once, in a folder that may be deleted by hand; the list of what was told lies beside that folder, so
that nothing kept comes back with the next start. Does not know how a lost operation is found.
"""

from __future__ import annotations

import filecmp
import os
from collections.abc import Iterable
from pathlib import Path

from loreloop.store.files import Files

TOLD, ABOUT_TO_BE_TOLD = "lost.told", "lost.found"  # request ids, one a line


def told(folder: Path) -> set[str]:
    """Requests of which the operator of a data folder has heard that they are lost."""
    file = folder / "journal" / TOLD
    return set(file.read_text(errors="replace").splitlines()) if file.exists() else set()


def found(folder: Path, request_ids: Iterable[str]) -> None:
    """Notes all that are lost now. It counts as told only after `were_told`: a start may end before it says a word."""
    (folder / "journal" / ABOUT_TO_BE_TOLD).write_text("".join(f"{each}\n" for each in sorted(request_ids)))


def were_told(folder: Path) -> None:
    """To be called when the notes about a data folder have been said."""
    if (new := folder / "journal" / ABOUT_TO_BE_TOLD).exists():
        new.replace(new.with_name(TOLD))


def keep(folder: Path, segment: Path) -> Path:
    """The one copy of a segment that no sweep deletes: a link where there is none. A segment of the same number from
    before a backup was brought back is another one, and has a name of its own."""
    place = Files(folder).lost
    place.mkdir(parents=True, exist_ok=True)
    target, number = place / segment.name, 1
    while target.exists() and not (target.samefile(segment) or filecmp.cmp(target, segment, shallow=False)):
        target, number = place / f"{segment.stem}-{number}.seg", number + 1
    if not target.exists():
        os.link(segment, target)
    return target

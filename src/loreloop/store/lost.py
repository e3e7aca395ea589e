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

REPORTED_FILE, PENDING_FILE = "lost.told", "lost.found"  # request ids, one a line


def reported(folder: Path) -> set[str]:
    """Requests of which the operator of a data folder has heard that they are lost."""
    file = folder / "journal" / REPORTED_FILE
    return set(file.read_text(errors="replace").splitlines()) if file.exists() else set()


def note_found(folder: Path, request_ids: Iterable[str]) -> None:
    """Notes all that are lost now. They count as reported only after `confirm_reported`, since a start may end
    before it says a word."""
    (folder / "journal" / PENDING_FILE).write_text("".join(f"{each}\n" for each in sorted(request_ids)))


def confirm_reported(folder: Path) -> None:
    """To be called when the notes about a data folder have been said."""
    if (new := folder / "journal" / PENDING_FILE).exists():
        new.replace(new.with_name(REPORTED_FILE))


def keep(folder: Path, segment: Path) -> Path:
    """The one copy of a segment that no sweep deletes: a link where there is none. A segment of the same number from
    before a backup was brought back is another one, and has a name of its own."""
    place = Files(folder).lost
    place.mkdir(parents=True, exist_ok=True)
    target, number = place / segment.name, 1
    # The same segment may be found at every start until it is swept; it is kept only once.
    while target.exists() and not (target.samefile(segment) or filecmp.cmp(target, segment, shallow=False)):
        target, number = place / f"{segment.stem}-{number}.seg", number + 1
    if not target.exists():
        os.link(segment, target)
    return target

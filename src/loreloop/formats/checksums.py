"""What a model's files were when it was added, so that damage at rest can be told: `.loreloop-sha256.json` beside them.

The note holds each file's sha256 by its path in the folder. Knows no formats.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from loreloop.formats.weight_files import weight_files
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.json_files import read_json_object

NOTE = ".loreloop-sha256.json"
AGAIN = "`loreloop models remove` the model and add it again."


@dataclass(frozen=True)
class Finding:
    """One file that was noted: `state` is ok, changed or missing."""

    file: str
    state: str


def note(folder: Path) -> None:
    """Writes down all files of the folder as they are now."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != NOTE)
    sums = {str(file.relative_to(folder)): _sha256(file) for file in files}
    (folder / NOTE).write_text(json.dumps(sums, indent=1))


def findings(folder: Path) -> Iterator[Finding]:
    """Every noted file, as it is now; none where nothing was noted."""
    for name, wanted in _noted(folder).items():
        file = folder / name
        state = ("ok" if _sha256(file) == wanted else "changed") if file.exists() else "missing"
        yield Finding(name, state)


def check_weights_unchanged(folder: Path) -> None:
    """BadRequest where weights are not those that were added, or nothing was noted then."""
    noted = _noted(folder)
    for file in weight_files(folder):
        wanted = noted.get(file.name)
        if wanted is None:
            raise BadRequest(
                f"{file} cannot be verified: nothing was noted of it. Models get checksums from `loreloop models add`."
            )
        if _sha256(file) != wanted:
            raise BadRequest(
                f"{file} is not the file that was added: its sha256 differs. Remove the model and add it again."
            )


def _noted(folder: Path) -> dict[str, str]:
    file = folder / NOTE
    if not file.exists():
        return {}
    return read_json_object(file, str(file), AGAIN)


def _sha256(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise BadRequest(f"{file} cannot be read: {error}.") from None

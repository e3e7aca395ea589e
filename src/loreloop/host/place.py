"""The folder of a server's data, looked at before anything is put there."""

from __future__ import annotations

import errno
from pathlib import Path

from loreloop.protocol.errors import BadRequest, WrongSettings
from loreloop.protocol.folders import make_private

PROBE_BYTES = 8 << 20  # a start itself writes less
FULL = (errno.ENOSPC, errno.EDQUOT)


def prepare(folder: Path) -> None:
    """Makes the folder. WrongSettings where it cannot be one for data, BadRequest where its disk is full."""
    folder = folder.absolute()
    for parent in folder.parents:
        if (parent / "loreloop.db").exists():
            raise WrongSettings(f"{_named(folder)} lies in another data folder, {parent}. Give one of its own.")
    probe = folder / f".probe-{folder.name[:32]}"
    try:
        make_private(folder)
        try:
            # Permissions, quotas and full disks show reliably only when something is written.
            probe.write_bytes(bytes(PROBE_BYTES))
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        if error.errno in FULL:
            raise BadRequest(
                f"{_named(folder)} has not even {PROBE_BYTES >> 20} MiB left: {error.strerror}. Make room there."
            ) from None
        raise WrongSettings(f"{_named(folder)} cannot hold data: {error.strerror}. Give another folder.") from None


def _named(folder: Path) -> str:
    return f"The data folder {folder} (`data_dir`, --data)"

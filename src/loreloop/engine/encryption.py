"""Encrypts files that leave in age's form (https://age-encryption.org/v1), for those who hold a recipient's secret.

Knows no adapters. The library is an extra of the package, since few ask for this.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from loreloop.protocol.checksums import FileSum, sum_of
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.training import AGE_SUFFIX

SSH = "ssh-"


def encrypt_files(folder: Path, names: Iterable[str], recipients: Sequence[str]) -> dict[str, FileSum]:
    """Puts `NAME.age` in the place of each file; gives the new ones' checksums. BadRequest names a recipient that is
    none, before anything is written."""
    age = _library()
    # All recipients are read before the first file is touched, so that a wrong one leaves the folder as it was.
    keys = [_recipient(age, recipient) for recipient in recipients]
    sums = {}
    for name in names:
        encrypted = folder / f"{name}{AGE_SUFFIX}"
        age.encrypt_file(str(folder / name), str(encrypted), keys)
        # The readable file must not stay beside the encrypted one.
        (folder / name).unlink()
        sums[encrypted.name] = sum_of(encrypted)
    return sums


def _library() -> ModuleType:
    try:
        # Imported when it is asked for: only those who encrypt exports need to have it.
        return importlib.import_module("pyrage")
    except ImportError:
        raise BadRequest(
            "Encrypted exports (age_encryption_recipients) need pyrage beside the server: pip install "
            "'loreloop[encrypt]'. Or leave the recipients out."
        ) from None


def _recipient(age: ModuleType, text: str) -> Any:
    kind = age.ssh if text.startswith(SSH) else age.x25519
    try:
        return kind.Recipient.from_str(text)
    except age.RecipientError as error:
        raise BadRequest(
            f"The age_encryption_recipient {text[:100]!r} is no public key of age or SSH: {error}."
        ) from None

"""Small JSON files that somebody else has written, settings and lists: read whole, or refused in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from loreloop.protocol.errors import BadRequest


def read_json_object(file: Path, what: str, advice: str = "") -> dict[str, Any]:
    """BadRequest that calls the file `what`, and ends with `advice`, where it cannot be read or holds no object."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    # ValueError is both text that is no JSON and bytes that are no UTF-8; RecursionError is brackets within brackets.
    except (OSError, ValueError, RecursionError) as error:
        raise BadRequest(" ".join((f"{what} cannot be read: {error}.", advice)).strip()) from None
    if not isinstance(found, dict):
        raise BadRequest(" ".join((f"{what} holds no JSON object, but a {type(found).__name__}.", advice)).strip())
    return found

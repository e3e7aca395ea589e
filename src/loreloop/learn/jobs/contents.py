"""What a file for fine-tuning holds, found out at its upload: how many examples, of which form.

Reads JSON lines; a mistake is told with its line and field. Knows neither tokens nor models.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from loreloop.protocol.errors import BadRequest

LONGEST_LINE = 16 << 20  # bytes: what is longer is no line of examples


def contents_of(file: Path) -> dict[str, Any]:
    """`n_examples`, `form` and `has_images` of a file; BadRequest where it is none of JSON lines."""
    n_examples = 0
    with file.open("rb") as lines:
        for number, line in enumerate(iter(lambda: lines.readline(LONGEST_LINE + 1), b""), 1):
            if not line.strip():
                continue
            try:
                value = msgspec.json.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise BadRequest(f"Line {number} is no JSON: {error}.") from None
            if not isinstance(value, dict):
                raise BadRequest(f"Line {number} is no JSON object.")
            n_examples += 1
    if not n_examples:
        raise BadRequest("The file is empty; it must hold one example a line.")
    return {"n_examples": n_examples, "form": "demonstrations", "has_images": False}

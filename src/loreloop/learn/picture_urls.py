"""Whether a `data:` URL can hold an image at all, as far as its text and its first bytes tell.

A file is read by this before anything is asked of a server, so that a broken image is told with its line. Knows neither
pixels nor models.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping

PICTURE = re.compile(r"data:image/(png|jpeg|jpg|webp);base64,([A-Za-z0-9+/=\s]+)\Z")
JPEG = re.compile(rb"\xff\xd8\xff")
# How files of these kinds begin, by their own specifications.
BEGINNINGS: Mapping[str, re.Pattern[bytes]] = {
    "png": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "jpeg": JPEG,
    "jpg": JPEG,
    "webp": re.compile(rb"RIFF....WEBP", re.DOTALL),
}


def trouble_with(url: str) -> str | None:
    """What is wrong with an image's URL, to be put behind its field; None for one that may hold an image."""
    match = PICTURE.match(url)
    if match is None:
        return "a file holds its images as data:image/png;base64,… (or jpeg, webp)."
    try:
        data = base64.b64decode("".join(match[2].split()), validate=True)
    except binascii.Error:
        return "its base64 is broken; encode the whole image anew."
    if not BEGINNINGS[match[1]].match(data):
        return f"its bytes are no {match[1]} image; name the kind that they are, or send the image itself."
    return None

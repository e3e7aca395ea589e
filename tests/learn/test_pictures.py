"""Images of files: WebP becomes PNG with the same pixels; what is none is refused."""

from __future__ import annotations

import base64
import io

import pytest
from PIL import Image

from loreloop.learn import pictures
from loreloop.learn.pictures import image_of
from loreloop.protocol.errors import BadRequest


def url(data: bytes, kind: str = "webp") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def webp(mode: str) -> tuple[Image.Image, bytes]:
    image, file = Image.effect_noise((8, 6), 50).convert(mode), io.BytesIO()
    image.save(file, "WEBP", lossless=True, exact=True)
    return image, file.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_webp_becomes_png_with_the_same_pixels(mode: str) -> None:
    image, data = webp(mode)
    chunk = image_of(url(data))
    assert chunk.format == "png"
    found = Image.open(io.BytesIO(chunk.data))
    assert found.format == "PNG"
    assert found.convert(mode).tobytes() == image.tobytes()


def test_what_is_no_webp_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _, data = webp("RGB")
    for broken in (b"", b"RIFF", data[:40], b"\x89PNG\r\n\x1a\n"):
        with pytest.raises(BadRequest, match="An image cannot be read"):
            image_of(url(broken) if broken else url(b"x"))
    with pytest.raises(BadRequest, match="learned from as data:image/png"):
        image_of(url(data, "gif"))
    monkeypatch.setattr(pictures, "MOST_PIXELS", 40)
    with pytest.raises(BadRequest, match="8 × 6 pixels; at most 40"):
        image_of(url(data))

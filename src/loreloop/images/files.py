"""Image files, which anybody may have made: what they are is told by their bytes, and they are read within bounds.

Every defect is a BadRequest that names it. Knows no models.
"""

from __future__ import annotations

import io
import zlib
from dataclasses import dataclass
from functools import partial

from PIL import Image

from loreloop.protocol.errors import BadRequest, outcome_of

ORIENTATION = 0x0112  # EXIF: how a camera was held
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIGNATURE = b"\x89PNG\r\n\x1a\n"
NOTES = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")  # chunks of a PNG in which a camera or a program may have written
CHUNK_FRAME = 12  # bytes of a chunk beside its data: length, kind, checksum
MOST_CHUNKS = 1 << 16  # that are looked at; the largest picture that is taken has some thousand
BOMB = (Image.DecompressionBombError, Image.DecompressionBombWarning)


@dataclass(frozen=True)
class ImageLimits:
    """Bounds on one image: bytes of its file, and pixels once it is decoded."""

    max_bytes: int = 20 << 20
    max_pixels: int = 40_000_000


def kind_of(data: bytes) -> str | None:
    """png, jpeg or webp, by the first bytes."""
    if data.startswith(SIGNATURE):
        return "png"
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    return "webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None


def image_size(data: bytes, limits: ImageLimits) -> tuple[int, int]:
    """Width and height as they will be seen, from the file's head alone."""
    image = _opened(data, limits)
    width, height = image.size
    return (height, width) if _turn(image) in (5, 6, 7, 8) else (width, height)


def read_image(data: bytes, limits: ImageLimits) -> Image.Image:
    """The whole image, upright, in RGB."""
    image = _opened(data, limits)
    turn = TURNS.get(_turn(image))
    decoded = outcome_of(partial(_decoded, image))
    if isinstance(decoded, Exception):
        raise BadRequest(f"The image cannot be decoded: {_reason(decoded)}.") from None
    return decoded if turn is None else decoded.transpose(turn)


def _decoded(image: Image.Image) -> Image.Image:
    image.load()
    return (image.convert("RGBA") if "transparency" in image.info else image).convert("RGB")


def _opened(data: bytes, limits: ImageLimits) -> Image.Image:
    if len(data) > limits.max_bytes:
        raise BadRequest(f"The image has {len(data)} bytes; at most {limits.max_bytes} are taken.")
    kind = kind_of(data)
    if kind is None:
        raise BadRequest("The image's bytes are neither PNG nor JPEG nor WebP.")
    # Of a file that is not what it claims to be, Pillow's readers raise anything.
    image = outcome_of(lambda: Image.open(io.BytesIO(notes_first(data) if kind == "png" else data), formats=[kind]))
    if isinstance(image, BOMB):
        raise BadRequest(f"The image has too many pixels; at most {limits.max_pixels} are taken.")
    if isinstance(image, Exception):
        raise BadRequest(f"The image's head cannot be read: {_reason(image)}.")
    width, height = image.size
    if width * height > limits.max_pixels:
        raise BadRequest(f"The image is {width} × {height} pixels; at most {limits.max_pixels} together are taken.")
    if width < 1 or height < 1:
        raise BadRequest(f"The image is {width} × {height} pixels: there is nothing to see.")
    # Which frame was meant cannot be known, so none is chosen.
    if kind != "jpeg" and getattr(image, "is_animated", False):  # a JPEG's further pictures are previews
        raise BadRequest("The image is animated; send one of its frames.")
    return image


def _turn(image: Image.Image) -> int:
    """The orientation in the file's head: by EXIF, by an older PNG's raw profile, or by XMP."""
    # The method that all formats share: PNG's own would decode the pixels, to look behind them too.
    turn = outcome_of(lambda: int(Image.Image.getexif(image).get(ORIENTATION, 1)))
    return 1 if isinstance(turn, Exception) else turn  # what a camera noted is no part of the picture


def notes_first(png: bytes) -> bytes:
    """The file with what was noted behind its pixels before them, so that its head alone tells how it was held."""
    position, pixels, late_notes = len(SIGNATURE), 0, list[bytes]()
    for _ in range(MOST_CHUNKS):
        length, kind = int.from_bytes(png[position : position + 4]), png[position + 4 : position + 8]
        after = position + CHUNK_FRAME + length
        if after > len(png):
            break
        if kind == b"IDAT":
            pixels = pixels or position
        elif pixels and kind in NOTES:  # of which readers check no sum behind the pixels, but do before them
            late_notes.append(png[position : after - 4] + zlib.crc32(png[position + 4 : after - 4]).to_bytes(4))
        position = after
    return png[:pixels] + b"".join(late_notes) + png[pixels:] if late_notes else png


def _reason(error: BaseException) -> str:
    return str(error)[:200].rstrip(".") or type(error).__name__

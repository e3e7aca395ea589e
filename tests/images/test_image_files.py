"""Image files of all sorts: what can be seen is seen as published processors see it, the rest is refused by name."""

import base64
import contextlib
import io
import random
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.image_utils import load_image
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from loreloop.config import LimitConfig
from loreloop.http.pictures import _check_all
from loreloop.images.check import CHAT_FORMATS, WIRE_FORMATS, check_kind, checked, chunk_cut
from loreloop.images.files import ImageLimits, image_size, kind_of, read_image
from loreloop.images.pixels import pixels_CHW
from loreloop.images.sizes import cut_of
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.images import FixedGrid, ImageRules, SmartGrid
from loreloop.protocol.training import ImageChunk
from tests.tiny_vision import picture

LIMITS = ImageLimits(max_bytes=1 << 20, max_pixels=1_000_000)
QWEN = SmartGrid(32, 32 * 32, 256 * 256)
LLAVA = FixedGrid(28, 28, 4, shorter_side=28)
HALF = (0.5, 0.5, 0.5)
RULES = ImageRules(3, QWEN, multi_axis=True, mean=HALF, std=HALF)


def check(chunk: ImageChunk, formats=WIRE_FORMATS) -> ImageChunk:
    check_kind(chunk, formats)
    return checked(chunk, RULES, LIMITS)


def saved(image: Image.Image, format: str = "png", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def frames(n: int, format: str) -> bytes:
    first, *rest = [Image.new("RGB", (16, 16), (40 * i, 0, 0)) for i in range(n)]
    return saved(first, format, save_all=True, append_images=rest, duration=100)


def png(width: int, height: int, body: bytes = b"\0" * 100) -> bytes:
    """A PNG that says what it likes about its size."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", head), (b"IDAT", zlib.compress(body)), (b"IEND", b""))
    )


def bombed_text() -> bytes:
    """A PNG whose comment unpacks to 128 MiB."""
    good, comment = picture(), b"x\0\0" + zlib.compress(b"\0" * (128 << 20), 9)
    chunk = struct.pack(">I", len(comment)) + b"zTXt" + comment + struct.pack(">I", zlib.crc32(b"zTXt" + comment))
    return good[:33] + chunk + good[33:]


GOOD = picture(70, 40)
BAD = {
    "nothing": (ImageChunk(b"", "png"), "no known format"),
    "a text": (ImageChunk(b"hello, I am a picture", "png"), "no known format"),
    "a gif": (ImageChunk(saved(Image.new("RGB", (8, 8)), "gif"), "png"), "no known format"),
    "another format": (ImageChunk(picture(format="jpeg"), "png"), "said to be 'png', but its bytes are jpeg"),
    "webp by the wire": (ImageChunk(picture(format="webp"), "webp"), "webp; send png or jpeg"),
    "a bare head": (ImageChunk(b"\x89PNG\r\n\x1a\n", "png"), "cannot be read"),
    "half of it": (ImageChunk(GOOD[: len(GOOD) // 2], "png"), "cannot be decoded"),
    "half a jpeg": (ImageChunk(picture(200, 200, format="jpeg")[:3000], "jpeg"), "cannot be decoded"),
    "a broken body": (ImageChunk(png(8, 8, b"\xff" * 3), "png"), "cannot be decoded"),
    "a bomb": (ImageChunk(png(60_000, 60_000), "png"), "pixels"),
    "a small bomb": (ImageChunk(png(2000, 2000), "png"), "2000 × 2000 pixels"),
    "a comment that is a bomb": (ImageChunk(bombed_text(), "png"), "cannot be"),
    "no pixels": (ImageChunk(png(0, 9), "png"), "image"),
    "an animated png": (ImageChunk(frames(3, "png"), "png"), "animated"),
    "too many bytes": (ImageChunk(GOOD + bytes(1 << 20), "png"), "bytes; at most"),
    "a line": (ImageChunk(saved(Image.new("RGB", (900, 2))), "png"), "900 × 2"),
    "another count": (ImageChunk(GOOD, "png", expected_tokens=7), "is 2 tokens for this model; 7 were expected"),
    "no width": (ImageChunk(GOOD, "png", width=0, height=4), "override_dimensions are 0 × 4"),
    "a huge width": (ImageChunk(GOOD, "png", width=1 << 30, height=1 << 30), "override_dimensions"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_seen_is_refused_by_name(name):
    chunk, words = BAD[name]
    with pytest.raises(BadRequest, match=words):
        check(chunk)


def test_a_png_s_body_is_read_once_and_must_be_whole():
    good = picture(200, 200)
    at = good.index(b"IDAT") + 2000
    damaged = good[:at] + bytes([good[at] ^ 0x55]) + good[at + 1 :]
    assert image_size(damaged, LIMITS) == (200, 200)
    with pytest.raises(BadRequest, match="cannot be decoded"):
        check(ImageChunk(damaged, "png"))


def test_the_size_is_in_the_head(monkeypatch):
    data = saved(
        Image.open(io.BytesIO(GOOD)), exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    )
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: pytest.fail("the body was decoded"))
    assert image_size(GOOD, LIMITS) == (70, 40)
    assert image_size(data, LIMITS) == (40, 70)


def test_a_request_of_too_many_pixels_is_refused_before_any_is_decoded(monkeypatch):
    images = {ImageChunk(png(900, 900), "png"): "The first", ImageChunk(png(900, 800), "png"): "The second"}
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: pytest.fail("the body was decoded"))
    with pytest.raises(BadRequest, match=r"The second: .* over 1000000 pixels"):
        _check_all(images, RULES, LimitConfig(image_megapixels=1, request_megapixels=1), WIRE_FORMATS)


def test_an_animated_webp_is_refused_a_still_one_seen():
    with pytest.raises(BadRequest, match="animated"):
        check(ImageChunk(frames(3, "webp"), "webp"), CHAT_FORMATS)
    assert len(check(ImageChunk(picture(64, 64, format="webp"), "webp"), CHAT_FORMATS)) == 4


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "I;16", "CMYK"])
def test_every_mode_becomes_rgb(mode):
    image = Image.open(io.BytesIO(picture(20, 10)))
    if mode == "I;16":
        image = Image.fromarray(np.full((10, 20), 40_000, np.uint16))
    data = saved(image if mode == "I;16" else image.convert(mode), "jpeg" if mode == "CMYK" else "png")
    seen = read_image(data, LIMITS)
    assert (seen.mode, seen.size) == ("RGB", (20, 10))


def test_a_palette_with_transparency_is_read():
    image = Image.open(io.BytesIO(picture(20, 10))).convert("P")
    assert read_image(saved(image, transparency=bytes(range(256))), LIMITS).mode == "RGB"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_cameras_are_turned_upright(orientation):
    image = Image.fromarray(np.arange(6 * 16 * 16 * 3, dtype=np.uint8).reshape(32, 48, 3))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(image, exif=exif)
    from PIL import ImageOps

    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert image_size(data, LIMITS) == upright.size
    assert np.array_equal(np.asarray(read_image(data, LIMITS)), np.asarray(upright))


@pytest.mark.parametrize("size", [(64, 64), (70, 40), (33, 90), (5, 300), (700, 500), (16, 16)])
def test_pixels_are_those_of_published_processors(size):
    chunk = ImageChunk(picture(*size), "png")
    image = Image.open(io.BytesIO(chunk.data))
    if max(size) / min(size) < 50:
        theirs = LlavaImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
        rules = ImageRules(3, LLAVA)
        own = pixels_CHW(chunk, chunk_cut(chunk, rules, LIMITS), rules, LIMITS)
        assert np.array_equal(own, theirs(image)["pixel_values"][0])
    qwen = {"size": {"shortest_edge": QWEN.min_pixels, "longest_edge": QWEN.max_pixels}, "patch_size": 16}
    theirs = Qwen2VLImageProcessorPil(**qwen, image_mean=HALF, image_std=HALF)(image)
    own = pixels_CHW(chunk, chunk_cut(chunk, RULES, LIMITS), RULES, LIMITS)
    assert (theirs["image_grid_thw"][0] * 16).tolist() == [16, own.shape[1], own.shape[2]]
    patches = own.reshape(3, own.shape[1] // 32, 2, 16, own.shape[2] // 32, 2, 16).transpose(1, 4, 2, 5, 0, 3, 6)
    assert np.array_equal(np.stack((patches, patches), 5).reshape(-1, 1536), theirs["pixel_values"])


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_sizes_are_those_of_the_published_rule(width, height):
    if max(width, height) > 200 * min(width, height):
        with pytest.raises(BadRequest, match="200 times"):
            cut_of(QWEN, width, height)
        return
    cut = cut_of(QWEN, width, height)
    assert (cut.height, cut.width) == smart_resize(height, width, 32, QWEN.min_pixels, QWEN.max_pixels)
    assert cut.n_tokens == cut.rows * cut.columns == cut.width * cut.height // 1024
    fixed = cut_of(LLAVA, width, height)
    assert (fixed.n_tokens, min(fixed.width, fixed.height)) == (4, 28)


def test_dimensions_that_override():
    chunk = check(ImageChunk(GOOD, "png", width=128, height=64))
    assert len(chunk) == 8
    assert pixels_CHW(chunk, chunk_cut(chunk, RULES, LIMITS), RULES, LIMITS).shape == (3, 64, 128)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(["png", "jpeg", "webp"]), st.integers(0, 2**32), st.integers(1, 40))
def test_damaged_files_are_seen_or_refused_never_more(format, seed, n_changes):
    data, dice = bytearray(picture(30, 20, format=format)), random.Random(seed)
    for _ in range(n_changes):
        at = dice.randrange(len(data))
        match dice.randrange(3):
            case 0:
                data[at] = dice.randrange(256)
            case 1:
                del data[at : at + dice.randrange(20)]
            case 2:
                data[at:at] = dice.randbytes(dice.randrange(20))
    chunk = ImageChunk(bytes(data), kind_of(bytes(data)) or "png")
    with contextlib.suppress(BadRequest):
        assert len(check(chunk, CHAT_FORMATS)) >= 1


def chunk_of(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(values_HWC: np.ndarray, colours: int) -> bytes:
    """Sixteen bits a value; `colours` is the format's own number for grey, RGB, grey with alpha and RGB with alpha."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values_HWC)
    head = struct.pack(">IIBBBBB", values_HWC.shape[1], values_HWC.shape[0], 16, colours, 0, 0, 0)
    chunks = chunk_of(b"IHDR", head) + chunk_of(b"IDAT", zlib.compress(rows)) + chunk_of(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def odd_files() -> dict[str, bytes]:
    """Pictures on their side, told so in every place that a program may write it to; and values of sixteen bits."""
    upright = Image.fromarray((np.arange(32 * 48 * 3) % 251).astype(np.uint8).reshape(32, 48, 3))
    plain, exif = saved(upright), Image.Exif()
    exif[0x0112] = 6
    bare = exif.tobytes()[6:]
    xmp = b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
    profile = f"\nexif\n{len(bare) + 6:8}\n{(b'Exif' + bytes(2) + bare).hex()}"
    notes = {
        "eXIf": chunk_of(b"eXIf", bare),
        "raw profile": chunk_of(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profile.encode())),
        "xmp": chunk_of(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
    }
    files = {kind: saved(upright, kind, exif=exif) for kind in ("png", "jpeg", "webp")}
    files |= {f"xmp in {kind}": saved(upright, kind, xmp=xmp) for kind in ("jpeg", "webp")}
    files |= {f"{name} before the pixels": plain[:33] + note + plain[33:] for name, note in notes.items()}
    files |= {f"{name} behind the pixels": plain[:-12] + note + plain[-12:] for name, note in notes.items()}
    unsummed = notes["eXIf"][:-4] + bytes(4)
    files["a note behind the pixels with a wrong checksum"] = plain[:-12] + unsummed + plain[-12:]
    for colours, n in {0: 1, 2: 3, 4: 2, 6: 4}.items():
        data = png_of((np.arange(32 * 48 * n) * 41 % 65536).reshape(32, 48, n), colours)
        files |= {f"16 bits, colours {colours}": data[:-12] + notes["eXIf"] + data[-12:]}
    files["palette"] = saved(upright.convert("P"), transparency=bytes(range(256)), exif=exif)
    files["cmyk"] = saved(upright.convert("CMYK"), "jpeg", exif=exif)
    return files


ODD_FILES = odd_files()


@pytest.mark.numbers
@pytest.mark.filterwarnings("ignore:Palette images with Transparency")  # a remark of transformers' own conversion
@pytest.mark.parametrize("name", ODD_FILES)
def test_pictures_are_seen_as_transformers_opens_them(name):
    data = ODD_FILES[name]
    theirs = load_image(base64.b64encode(data).decode())
    assert theirs.size == (32, 48)
    assert image_size(data, LIMITS) == theirs.size
    assert np.array_equal(np.asarray(read_image(data, LIMITS)), np.asarray(theirs))

"""Images on their way in: their bytes found, checked off the event loop, and told in tokens.

Dialects give a `data:` URL, or a web address, which `remote_images` asks for.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from urllib.parse import unquote

import msgspec

from loreloop.config import Config, LimitConfig
from loreloop.http.remote_images import ImageWeb
from loreloop.images.check import CHAT_FORMATS, WIRE_FORMATS, check_kind, checked
from loreloop.images.files import ImageLimits, image_size
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.images import ImageRules
from loreloop.protocol.link import EngineInfo
from loreloop.protocol.training import Chunk, Datum, ImageChunk
from loreloop.text.conversation import Conversation

MEDIA_TYPES = {"image/png": "png", "image/jpeg": "jpeg", "image/jpg": "jpeg", "image/webp": "webp"}


class Pictures:
    """Checks images of all requests, two at a time: decoding takes memory, and the loop must not wait for it."""

    def __init__(self, config: Config) -> None:
        self.web, self.limits = ImageWeb(config.image_hosts, config.limits), config.limits
        self.pool = ThreadPoolExecutor(2, "images")

    async def close(self) -> None:
        """Closes the connections over which images were fetched."""
        await self.web.close()

    async def in_prompt(self, chunks: tuple[Chunk, ...], info: EngineInfo) -> tuple[Chunk, ...]:
        """The chunks with images checked and counted."""
        known = await self._checked([("The prompt", chunk) for chunk in chunks], info, WIRE_FORMATS)
        return tuple(known.get(chunk, chunk) for chunk in chunks)

    async def in_data(self, data: tuple[Datum, ...], info: EngineInfo) -> tuple[Datum, ...]:
        """The training data with every image checked and counted in tokens; the data itself where there is none."""
        chunks = [(f"Datum {index}", chunk) for index, datum in enumerate(data) for chunk in datum.chunks]
        known = await self._checked(chunks, info, WIRE_FORMATS)
        if not known:
            return data
        return tuple(msgspec.structs.replace(d, chunks=tuple(known.get(c, c) for c in d.chunks)) for d in data)

    async def in_conversation(self, conversation: Conversation, info: EngineInfo) -> Conversation:
        """Every picture with its checked chunk."""
        # A conversation repeats its pictures with every turn; each different one is fetched and decoded once.
        urls = list(dict.fromkeys(picture.url for turn in conversation.turns for picture in turn.pictures))
        if not urls:
            return conversation
        if info.images is None:
            raise BadRequest(
                f"{info.base_model} reads text only; leave images (image_url, input_image) out, or ask a vision model."
            )
        raw = await self._found(urls)
        places = [(f"Image {number}", chunk) for number, chunk in enumerate(raw.values(), 1)]
        known = await self._checked(places, info, CHAT_FORMATS)
        chunks = {url: known[chunk] for url, chunk in raw.items()}
        turns = tuple(
            replace(turn, parts=tuple(p if isinstance(p, str) else replace(p, chunk=chunks[p.url]) for p in turn.parts))
            for turn in conversation.turns
        )
        return replace(conversation, turns=turns)

    async def _checked(
        self, chunks: Sequence[tuple[str, Chunk]], info: EngineInfo, formats: tuple[str, ...]
    ) -> dict[Chunk, ImageChunk]:
        """Each different image once; where it stands is told with what is wrong with it."""
        # Reversed, so that of equal images the first place remains, which is the one to be told.
        images = {chunk: where for where, chunk in reversed(chunks) if isinstance(chunk, ImageChunk)}
        if not images:
            return {}
        if info.images is None:
            raise BadRequest(f"An image was sent (type 'image'); {info.base_model} takes text only.")
        work = partial(_check_all, images, info.images, self.limits, formats)
        return dict(zip(images, await asyncio.get_running_loop().run_in_executor(self.pool, work), strict=True))

    async def _found(self, urls: Sequence[str]) -> dict[str, ImageChunk]:
        """In their order. Those that came along are read first, since that costs others nothing."""
        found: dict[str, ImageChunk | None] = dict.fromkeys(urls)
        loop = asyncio.get_running_loop()
        for url in urls:
            # Slicing before comparing keeps a URL of many megabytes from being copied in lower case.
            if url[:5].lower() == "data:":
                found[url] = await loop.run_in_executor(self.pool, _of_data_url, url)
        elsewhere = [url for url, image in found.items() if image is None]
        found |= zip(elsewhere, await self.web.images(elsewhere), strict=True)
        return {url: image for url, image in found.items() if image is not None}


def _check_all(
    images: Mapping[ImageChunk, str], rules: ImageRules, limits: LimitConfig, formats: tuple[str, ...]
) -> list[ImageChunk]:
    bounds = ImageLimits(limits.image_mib << 20, limits.image_megapixels * 1_000_000)
    # Pixels are bounded over the whole request as well: many images that are each allowed would fill the memory
    # together.
    most, n_pixels = limits.request_megapixels * 1_000_000, 0
    for image, where in images.items():  # by their heads; nothing is decoded of a request that is too large
        with _standing_at(where):
            check_kind(image, formats)
            n_pixels += math.prod(image_size(image.data, bounds))
            if n_pixels > most:
                raise BadRequest(f"The request's images have over {most} pixels together; send fewer or smaller ones.")
    found: list[ImageChunk] = []
    for image, where in images.items():
        with _standing_at(where):
            found.append(checked(image, rules, bounds))
    return found


@contextlib.contextmanager
def _standing_at(where: str) -> Iterator[None]:
    try:
        yield
    except BadRequest as error:
        raise BadRequest(f"{where}: {error.message}") from None


def _of_data_url(url: str) -> ImageChunk:
    """Base64 with lines broken, escapes of addresses or its last signs left out is read as browsers read it."""
    head, comma, body = url[len("data:") :].partition(",")
    media_type, *options = (word.strip() for word in head.lower().split(";"))
    if not comma or "base64" not in options or media_type not in MEDIA_TYPES:
        raise BadRequest(
            f"The image's URL begins with {url[:40]!r}; send data:image/png;base64,… (or image/jpeg, image/webp)."
        )
    plain = "".join((unquote(body) if "%" in body else body).split())
    try:
        data = base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequest(f"The image's base64 is broken: {error}.") from None
    return ImageChunk(data, MEDIA_TYPES[media_type])

"""Images of conversations as chunks of a prompt, with the number of tokens that the server makes of each.

The number is asked of the server: log-probabilities of an image with one token behind it are one more than its tokens.
So this works on any server of the protocol, and knows nothing of how a model cuts images.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Literal

import tinker
from PIL import Image

from loreloop.protocol.errors import BadRequest
from loreloop.text.conversation import Conversation

Chunks = Mapping[str, tinker.types.ImageChunk]  # by the URL under which a conversation has the image

FORMATS: Mapping[str, Literal["png", "jpeg"]] = {"png": "png", "jpeg": "jpeg", "jpg": "jpeg"}
MOST_KEPT = 1024  # images
MOST_PIXELS = 64_000_000  # of an image that is converted
DATA_URL = re.compile(r"data:image/(png|jpeg|jpg|webp);base64,([A-Za-z0-9+/=\s]+)\Z")


def urls_of(conversations: Iterable[Conversation]) -> list[str]:
    """Each different image once."""
    turns = (turn for conversation in conversations for turn in conversation.turns)
    return list(dict.fromkeys(picture.url for turn in turns for picture in turn.pictures))


class BrokenImage(BadRequest):
    """An image cannot be used; `url` is where a conversation has it."""

    def __init__(self, message: str, url: str) -> None:
        super().__init__(message)
        self.url = url


class Looking:
    """Counts images as they turn up, each once, however many ask at the same time. `known` are those that were counted
    before; of the others the last `MOST_KEPT` are remembered."""

    def __init__(self, client: Callable[[], Awaitable[tinker.SamplingClient]], after: int, known: Chunks) -> None:
        self.client, self.after, self.known = client, after, known
        self.asked: dict[str, asyncio.Task[Chunks]] = {}

    async def at(self, conversation: Conversation) -> Chunks:
        """The chunks of a conversation's images. BadRequest as `counted`."""
        found: dict[str, tinker.types.ImageChunk] = {}
        for url in urls_of([conversation]):
            found[url] = self.known[url] if url in self.known else (await self._asked(url))[url]
        return found

    async def _asked(self, url: str) -> Chunks:
        # Put back at the end, so that what goes first is what was not shown for the longest time.
        task = self.asked.pop(url, None) or asyncio.ensure_future(self._counted(url))
        self.asked[url] = task
        while len(self.asked) > MOST_KEPT:
            del self.asked[next(iter(self.asked))]
        try:
            return await asyncio.shield(task)
        except tinker.TinkerError:
            # The next episode that shows it asks anew.
            self.asked.pop(url, None)
            raise

    async def _counted(self, url: str) -> Chunks:
        return await counted(await self.client(), [url], self.after)


async def counted(sampler: tinker.SamplingClient, urls: Iterable[str], after: int) -> Chunks:
    """The images with their numbers of tokens; `after` is any token of the vocabulary. BrokenImage for what is no image
    in a `data:` URL, or none to the server."""
    images = {url: _readable(url) for url in urls}
    asked = [
        sampler.compute_logprobs(tinker.ModelInput(chunks=[image, tinker.EncodedTextChunk(tokens=[after])]))
        for image in images.values()
    ]
    # All are waited for, so that the first one of the file is told and not the first to be looked at.
    answers = await asyncio.gather(*(one.result_async() for one in asked), return_exceptions=True)
    found: dict[str, tinker.types.ImageChunk] = {}
    for (url, image), answer in zip(images.items(), answers, strict=True):
        if isinstance(answer, tinker.BadRequestError | tinker.UnprocessableEntityError):
            raise BrokenImage(f"The server does not take an image: {_said(answer)}", url) from answer
        if isinstance(answer, BaseException):
            raise answer
        n_tokens = len(answer) - 1
        found[url] = tinker.types.ImageChunk(data=image.data, format=image.format, expected_tokens=n_tokens)
    return found


def _readable(url: str) -> tinker.types.ImageChunk:
    try:
        return image_of(url)
    except BadRequest as error:
        raise BrokenImage(error.message, url) from None


def _said(error: tinker.APIStatusError) -> str:
    """A server's own sentence out of its answer, where it has one."""
    about = error.body.get("error") if isinstance(error.body, dict) else None
    said = about.get("message") if isinstance(about, dict) else None
    return said if isinstance(said, str) else str(error)


def image_of(url: str) -> tinker.types.ImageChunk:
    """The bytes of a `data:` URL; BadRequest for any other. WebP, which the Tinker API does not take, becomes PNG."""
    match = DATA_URL.match(url)
    if match is None:
        raise BadRequest(f"An image is {url[:40]!r}…; it is learned from as data:image/png;base64,… (or jpeg, webp).")
    try:
        data = base64.b64decode("".join(match[2].split()), validate=True)
    except binascii.Error as error:
        raise BadRequest(f"An image's base64 is broken: {error}.") from None
    if match[1] == "webp":
        return tinker.types.ImageChunk(data=as_png(data), format="png")
    return tinker.types.ImageChunk(data=data, format=FORMATS[match[1]])


def as_png(data: bytes) -> bytes:
    """An image of another kind as PNG, with the same pixels. BadRequest where it cannot be read, or is too large."""
    try:
        with Image.open(io.BytesIO(data), formats=("WEBP",)) as image:
            # Looked at before a single pixel is made: few bytes may hold very many.
            if image.width * image.height > MOST_PIXELS:
                raise BadRequest(f"An image has {image.width} × {image.height} pixels; at most {MOST_PIXELS} are read.")
            file = io.BytesIO()
            image.convert("RGBA" if image.has_transparency_data else "RGB").save(file, "PNG")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadRequest(f"An image cannot be read: {error}.") from None
    return file.getvalue()

"""Images of files: WebP becomes PNG with the same pixels; what is none is refused."""

from __future__ import annotations

import asyncio
import base64
import io
from types import SimpleNamespace

import httpx
import pytest
import tinker
from PIL import Image

from loreloop.learn import pictures
from loreloop.learn.examples import Task
from loreloop.learn.methods import BadExample, Order, seeing
from loreloop.learn.pictures import image_of
from loreloop.learn.plan import Plan
from loreloop.learn.rendering import Renderer, Sight
from loreloop.learn.settings import GrpoSettings
from loreloop.protocol.errors import BadRequest
from loreloop.text.conversation import Conversation, Picture, Turn


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


class Refusing:
    """A sampling client that takes no image but one whose bytes are `good`."""

    def compute_logprobs(self, prompt: tinker.ModelInput) -> Answering:
        return Answering(prompt.chunks[0].data)

    async def create_sampling_client(self, base_model: str) -> Refusing:
        return self


class Answering:
    def __init__(self, data: bytes) -> None:
        self.data = data

    async def result_async(self) -> list[float]:
        if self.data == b"good":
            return [0.0] * 5
        body = {"error": {"message": "The image cannot be read."}}
        response = httpx.Response(400, request=httpx.Request("POST", "http://x"))
        raise tinker.BadRequestError("400", response=response, body=body)


def showing(*urls: str) -> Task:
    return Task(Conversation((Turn("user", "what?", parts=tuple(map(Picture, urls))),)))


@pytest.mark.parametrize(
    ("bad", "said"),
    [(url(b"bad", "png"), "The image cannot be read"), ("data:image/png;base64,AAA", "base64 is broken")],
)
@pytest.mark.parametrize("held_out", [False, True])
def test_a_broken_image_is_told_with_its_example_and_file(bad: str, said: str, held_out: bool) -> None:
    good, broken = [showing(), showing(url(b"good", "png"))], [showing(url(b"good", "png")), showing(bad)]
    order = Order(
        method="grpo",
        plan=Plan(base_model="eyes"),
        settings=GrpoSettings(),
        renderer=Renderer(SimpleNamespace(), SimpleNamespace(), [2], Sight(9)),  # type: ignore[arg-type]
        examples=good if held_out else broken,
        held_out=broken if held_out else good,
    )
    with pytest.raises(BadExample, match=f"xample 2: .*{said}") as refused:
        asyncio.run(seeing(order, Refusing()))  # type: ignore[arg-type]
    assert refused.value.held_out is held_out

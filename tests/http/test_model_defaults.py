"""Sampling defaults of a model's folder: chats of every dialect take them, bare completions and Tinker's never."""

import asyncio
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from loreloop.config import Config
from loreloop.protocol.sampling import SamplingParams
from tests.http.scripted import CHAT, MESSAGES, ROUTES, Script, Speaker, write_speech
from tests.http.site import sample, site

OWN: dict[str, Any] = {"temperature": 0.5, "top_p": 0.75, "top_k": 9, "min_p": 0.125, "repetition_penalty": 1.25}
NEUTRAL: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}


def write_defaults(folder: Path) -> None:
    write_speech(folder)
    fields = ", ".join(f'"{name}": {value}' for name, value in OWN.items())
    (folder / "generation_config.json").write_text(f'{{"do_sample": true, {fields}}}')


@pytest.mark.parametrize("wanted", [True, False])
def test_the_list_of_models_tells_what_chats_get(wanted: bool) -> None:
    """And is read by both vendors' clients, who keep the fields that they do not know."""

    async def run() -> None:
        async with site(Config(generation_config=wanted), write_defaults) as here:
            usual = OWN if wanted else NEUTRAL
            before = (await here.client.get("http://site/v1/models/fake")).json()
            assert (before["context_window"], before["sampling_defaults"]) == (None, usual)
            await here.start_engine()
            window = (await here.services.dispatcher.info("fake")).context_window
            listed = (await here.client.get("http://site/v1/models")).json()
            for shown in listed["data"]:
                assert (shown["context_window"], shown["sampling_defaults"]) == (window, usual), shown["id"]
            fake = next(shown for shown in listed["data"] if shown["id"] == "fake")
            assert fake == (await here.client.get("http://site/v1/models/fake")).json()
            for kind in (openai.types.Model, anthropic.types.ModelInfo):
                parsed = kind.construct(**fake)  # as the clients do
                told = parsed.model_extra or {}
                assert (parsed.id, told["context_window"], told["sampling_defaults"]) == ("fake", window, usual)

    asyncio.run(run())


def drawn(params: SamplingParams) -> dict[str, Any]:
    return {name: getattr(params, name) for name in OWN}


@pytest.mark.parametrize("wanted", [True, False])
def test_chats_alone_take_the_models_defaults(wanted: bool) -> None:
    async def run() -> None:
        async with site(Config(generation_config=wanted), write_defaults) as here:
            speaker = Speaker()
            script = Script(here, speaker)
            await here.start_engine(engine=speaker)
            usual = OWN if wanted else NEUTRAL
            for route in ROUTES:
                await script.ask(route, "x")
                assert drawn(speaker.heard[-1].params) == usual, route
            await script.ask(CHAT, "x", agent_loop={})
            assert drawn(speaker.heard[-1].params) == usual
            await script.ask(MESSAGES, "x", temperature=1, top_k=None)
            assert drawn(speaker.heard[-1].params) == usual | {"temperature": 1.0}
            await here.client.post("http://site/v1/completions", json={"model": "fake", "prompt": "a"})
            assert drawn(speaker.heard[-1].params) == NEUTRAL
            asked = await here.ok("/asample", sample(await here.sampler()))
            await here.future(asked["request_id"])
            assert drawn(speaker.heard[-1].params) == NEUTRAL

    asyncio.run(run())

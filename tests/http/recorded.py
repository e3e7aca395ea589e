"""A site with a deployment that records: asked by the packages that people ask with, and read by its routes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import anthropic
import httpx
import httpx2
import openai

from tests.http.scripted import Script, play_script

LOOP = "http://site/loop/v1"
ASKING: Any = [{"role": "system", "content": "be short"}, {"role": "user", "content": "hi"}]


class Room:
    """`script` sets what the model says; the packages speak with the site's own admin key unless told."""

    def __init__(self, script: Script) -> None:
        self.script, self.site = script, script.site
        self.key = self.site.client.headers["x-api-key"]

    def says(self, text: str) -> None:
        self.script.speaker.says = self.script.text.tokenizer.encode(text)

    def openai(self, key: str | None = None) -> openai.AsyncOpenAI:
        web = httpx.AsyncClient(transport=httpx.ASGITransport(self.site.app))
        return openai.AsyncOpenAI(base_url="http://site/v1", api_key=key or self.key, http_client=web, max_retries=0)

    def anthropic(self, key: str | None = None) -> anthropic.AsyncAnthropic:
        web = httpx2.AsyncClient(transport=httpx2.ASGITransport(self.site.app))
        return anthropic.AsyncAnthropic(
            base_url="http://site/anthropic/api", api_key=key or self.key, http_client=web, max_retries=0
        )

    async def deploy(self, name: str = "bot", **fields: Any) -> dict[str, Any]:
        body = {"target": "fake", "record": True} | fields
        return await self.loop("PUT", f"/deployments/{name}", json=body)

    async def loop(self, method: str, path: str, status_code: int = 200, key: str | None = None, **more: Any) -> Any:
        client = self.site.client if key is None else self.site.client_with(key)
        answer = await client.request(method, LOOP + path, **more)
        assert answer.status_code == status_code, answer.text
        return answer.json()

    async def turns(self, name: str = "bot", **query: Any) -> list[dict[str, Any]]:
        """What is recorded, once it is."""
        await self.site.services.recorder.flush()
        found = await self.loop("GET", f"/deployments/{name}/turns", params=query)
        return list(found["turns"])

    def keep_turns_late(self) -> None:
        """From now on a turn is on its way for as long as a busy machine takes to ask about it."""
        recorder = self.site.services.recorder
        recorder.bounds = type(recorder.bounds)(pause_seconds=3.0)

    async def ask(self, said: str = "yes", key: str | None = None, **fields: Any) -> Any:
        """A chat completion of the deployment, which answers with `said`."""
        self.says(said)
        body: dict[str, Any] = {"model": "bot", "messages": ASKING, "max_tokens": 400} | fields
        return await self.openai(key).chat.completions.create(**body)

    async def streamed(self, said: str = "yes", key: str | None = None, **fields: Any) -> list[Any]:
        """The chunks of a streamed one."""
        return [chunk async for chunk in await self.ask(said, key, stream=True, **fields)]


def play_recorded(scene: Callable[[Room], Awaitable[None]]) -> None:
    async def with_room(script: Script) -> None:
        room = Room(script)
        await room.deploy()
        await scene(room)
        await asyncio.wait_for(script.site.services.recorder.close(), 20)

    play_script(with_room)

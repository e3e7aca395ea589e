"""A site whose engine says what a test tells it to, with a real tokenizer and a template that thinks and calls."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec

from loreloop.config import Config
from loreloop.engine.fake import FakeEngine
from loreloop.protocol.link import EngineInfo
from loreloop.protocol.sampling import SampleOp
from tests.http.site import Site, site
from tests.text.test_chat import TOOL_TEMPLATE
from tests.tiny import make_tokenizer

CHAT, RESPONSES, MESSAGES = ROUTES = ("/v1/chat/completions", "/v1/responses", "/anthropic/api/v1/messages")
SCHEMA = {"type": "object", "properties": {"x": {}}}
TOOLS: dict[str, Any] = {
    CHAT: [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}],
    RESPONSES: [{"type": "function", "name": "f", "parameters": SCHEMA}],
    MESSAGES: [{"name": "f", "input_schema": SCHEMA}],
}
FORCED: dict[str, Any] = {CHAT: "required", RESPONSES: "required", MESSAGES: {"type": "any"}}
LIMIT = {CHAT: "max_tokens", RESPONSES: "max_output_tokens", MESSAGES: "max_tokens"}
ASKING = [{"role": "user", "content": "hi"}]


class Speaker(FakeEngine):
    """Draws the tokens of `says`, then the end."""

    def __init__(self) -> None:
        super().__init__(rooms=32)
        self.says: list[int] = []
        self.heard: list[SampleOp] = []

    @property
    def info(self) -> EngineInfo:
        return msgspec.structs.replace(super().info, context_window=1 << 17)

    def admit(self, op: SampleOp) -> bool:
        self.heard.append(op)
        return super().admit(op)

    def draw(self, op: SampleOp, index: int, position: int) -> int:
        return [*self.says, 0][position]


class Script:
    """A site and its speaker."""

    def __init__(self, site: Site, speaker: Speaker) -> None:
        self.site, self.speaker = site, speaker
        self.text = site.services.texts.of(site.services.names.folder("fake"))

    async def ask(self, route: str, said: str, status_code: int = 200, **fields: Any) -> httpx.Response:
        """Has the engine answer `said`, or as much of it as the limit lets through."""
        self.speaker.says = self.text.tokenizer.encode(said)
        usual = {"input": ASKING} if route == RESPONSES else {"messages": ASKING}
        body = {"model": "fake", LIMIT[route]: 4000, "seed": 1, "tools": TOOLS[route]} | usual | fields
        answer = await self.site.client.post(f"http://site{route}", json=body)
        assert answer.status_code == status_code, answer.text
        return answer

    async def whole(self, route: str, said: str, **fields: Any) -> dict[str, Any]:
        return (await self.ask(route, said, **fields)).json()

    async def events(self, route: str, said: str, **fields: Any) -> list[dict[str, Any]]:
        answer = await self.ask(route, said, stream=True, **fields)
        lines = [line for line in answer.text.splitlines() if line.startswith("data: {")]
        return [json.loads(line.removeprefix("data: ")) for line in lines]

    def n_tokens(self, text: str) -> int:
        return len(self.text.tokenizer.encode(text))

    def prompt(self) -> str:
        """What the engine was asked last."""
        (chunk,) = self.speaker.heard[-1].prompt
        return self.text.tokenizer.decode([*memoryview(chunk.tokens).cast("i")])


def write_speech(folder: Path) -> None:
    make_tokenizer(folder, 400, template=TOOL_TEMPLATE)


def play_script(scene: Callable[[Script], Awaitable[None]]) -> None:
    async def run() -> None:
        async with site(Config(), write_speech) as here:
            speaker = Speaker()
            script = Script(here, speaker)
            await here.start_engine(engine=speaker)
            await asyncio.wait_for(scene(script), 120)

    asyncio.run(run())

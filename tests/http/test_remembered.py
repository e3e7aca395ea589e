"""A memory on the server in the place of the past, through every dialect: what the model is sent, and what is kept."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from loreloop.protocol.sampling import SampleOp
from tests.http.site import Site, play

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/anthropic/api/v1/messages"
LIMITS = {CHAT: "max_tokens", RESPONSES: "max_output_tokens", MESSAGES: "max_tokens"}
ROUTES = pytest.mark.parametrize("route", LIMITS)
ANN = {"id": "ann", "budget_tokens": 400}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def body_of(route: str, messages: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    said = {"input" if route == RESPONSES else "messages": messages}
    return {"model": "fake", "seed": 1, LIMITS[route]: 4, "memory": ANN} | said | more


class Talk:
    """Requests to one site, and the operations that reached its engine."""

    def __init__(self, site: Site) -> None:
        self.site, self.ops, self.hand_in = site, list[SampleOp](), site.services.dispatcher.sample
        site.services.dispatcher.sample = self  # type: ignore[assignment,method-assign]

    def __call__(self, op: SampleOp, *rest: Any) -> bool:
        self.ops.append(op)
        return self.hand_in(op, *rest)

    async def post(self, route: str, body: dict[str, Any], **more: Any) -> httpx.Response:
        return await self.site.client.post(f"http://site{route}", json=body, **more)

    async def say(self, route: str, *messages: dict[str, Any], **more: Any) -> dict[str, Any]:
        """The answer, of a stream the event that ends it."""
        answer = await self.post(route, body_of(route, list(messages), **more))
        assert answer.status_code == 200, answer.text
        return ending(route, answer) if more.get("stream") else answer.json()

    async def refused(self, status_code: int, route: str, *messages: dict[str, Any], **more: Any) -> str:
        n_sampled = len(self.ops)
        answer = await self.post(route, body_of(route, list(messages), **more))
        assert answer.status_code == status_code, answer.text
        assert len(self.ops) == n_sampled
        return answer.json()["error"]["message"]

    async def shown(self, id: str = "ann", whose: str = "") -> dict[str, Any]:
        answer = await self.site.client.get(f"http://site/loop/v1/memories/{id}", params={"user": whose})
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def lines(self, id: str = "ann", whose: str = "") -> list[str]:
        return [segment["text"] for segment in (await self.shown(id, whose))["segments"]]

    @property
    def prompt(self) -> str:
        """The last prompt, of which the site's tokenizer knows numbers only."""
        texts = self.site.services.texts.of(self.site.services.names.folder("fake"))
        (chunk,) = self.ops[-1].prompt
        ids = [int.from_bytes(chunk.tokens[at : at + 4], "little") for at in range(0, len(chunk.tokens), 4)]
        return texts.tokenizer.decode(ids)


def ending(route: str, answer: httpx.Response) -> dict[str, Any]:
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    found = [event for event in events if "memory" in event.get("response", event)]
    return found[-1].get("response", found[-1])


def said_by(route: str, told: dict[str, Any]) -> str:
    if route == RESPONSES:
        return told["output"][-1]["content"][0]["text"]
    return told["content"][0]["text"] if route == MESSAGES else told["choices"][0]["message"]["content"]


@ROUTES
def test_the_model_is_sent_the_memory_in_the_place_of_the_past(route: str) -> None:
    async def scene(site: Site) -> None:
        talk = Talk(site)
        first = await talk.say(route, user("11 12"))
        answer = said_by(route, first)
        assert talk.prompt == "11 12"
        assert first["memory"]["remembered"] is True
        assert first["memory"]["turns"] == 2
        await talk.say(route, user("13"))
        assert talk.prompt.endswith("13")
        assert "11 12" in talk.prompt
        assert answer in talk.prompt
        assert (await talk.lines())[:3] == ["user: 11 12", f"assistant: {answer.strip()}", "user: 13"]

    play(scene)


@ROUTES
def test_a_stream_is_remembered_before_its_end_is_told(route: str) -> None:
    async def scene(site: Site) -> None:
        talk = Talk(site)
        told = await talk.say(route, user("11 12"), stream=True)
        shown = await talk.shown()
        assert told["memory"] == {name: shown[name] for name in told["memory"] if name != "remembered"} | {
            "remembered": True
        }
        whole = said_by(route, await talk.say(route, user("11 12"), memory={"id": "bob", "budget_tokens": 400}))
        assert await talk.lines() == ["user: 11 12", f"assistant: {whole.strip()}"]

    play(scene)

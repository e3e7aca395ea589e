"""A whole server in this process with a fake engine, which is asked by bytes: it may refuse, and must not fail."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

from loreloop.config import Config, LimitConfig, SessionConfig
from loreloop.http import openapi
from tests.fuzz.source import Source, as_json, made
from tests.http.site import Site, passing, save, site, step

HANGS_SECONDS = 15.0
ENDS_THINGS = ("finish_session", "run_grader")  # the first all that follows, the second a process for each case
PROTOBUF, JSON = "application/x-protobuf", "application/json"


class Served:
    """Started at its first case and left to the end of its process."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.stack = contextlib.AsyncExitStack()
        self.kinds = {name: kind for name, kind in self._kinds().items() if name[1] not in ENDS_THINGS}
        self.words: list[str] = []
        self.usual: dict[str, list[Any]] = {}
        self.seq_id = 10
        self.site: Site = self.loop.run_until_complete(self._start())
        self.loop.run_until_complete(self._furnish())

    def ask(self, data: bytes) -> None:
        """One request that these bytes make; AssertionError where it is answered by a fault of ours, or not at all."""
        source = Source(data, self.words, self.usual)
        (path, _), kind = source.pick(sorted(self.kinds.items(), key=lambda one: one[0]))
        if path == "forward_backward":
            return self._post("/api/v1/forward_backward", source.rest(), PROTOBUF)
        while "{" in path:
            before, _, after = path.partition("{")
            path = before + ("bot" if source.byte() % 2 else source.text()) + after.partition("}")[2]
        if source.byte() > 250:
            return self._post(path, source.rest(), JSON)
        body = made(source, kind)
        # Operations are executed in the order of their numbers, so that one that is left out would hold up the rest.
        if isinstance(body, dict) and "seq_id" in body and source.byte() % 8:
            self.seq_id += 1
            body["seq_id"] = self.seq_id
        return self._post(path, as_json(body), JSON)

    def close(self) -> None:
        """Ends the server."""
        self.loop.run_until_complete(self.stack.aclose())
        self.loop.close()

    def _kinds(self) -> dict[tuple[str, str], Any]:
        kinds: dict[tuple[str, str], Any] = {("forward_backward", "forward_backward"): None}
        from loreloop.http.anthropic import messages
        from loreloop.http.application import LOOP, OPENAI, TINKER

        for prefix, routes in (
            ("/api/v1", TINKER),
            ("/v1", OPENAI),
            ("/loop/v1", LOOP),
            ("/anthropic/api/v1", messages.ROUTES),
        ):
            for route in routes:
                if (kind := openapi.BODIES.get(route.endpoint)) is not None:
                    method = next(iter(route.methods or {"POST"}))
                    kinds[f"{method} {prefix}{route.path}", route.endpoint.__name__] = kind
        return kinds

    async def _start(self) -> Site:
        session = SessionConfig(poll_hold_seconds=0.02)
        config = Config(session=session, limits=LimitConfig(body_mib=1, models_per_key=1 << 20))
        here = await self.stack.enter_async_context(site(config))
        await here.start_engine()
        return here

    async def _furnish(self) -> None:
        """Things whose ids the requests may name."""
        session_id = await self.site.session()
        model_id = await self.site.model(session_id)
        assert (await self.site.train(passing(model_id, 1))).status_code == 200
        await self.site.result("/optim_step", step(model_id, 2))
        saved = await self.site.result("/save_weights_for_sampler", save(model_id, 3, "a"))
        sampler_id = await self.site.sampler(session_id)
        await self.site.client.put("http://site/loop/v1/deployments/bot", json={"target": "fake", "record": True})
        answer = await self.site.client.post(
            "http://site/v1/chat/completions",
            json={"model": "bot", "messages": [{"role": "user", "content": "1"}], "max_tokens": 2},
        )
        turn = answer.json()["id"]
        self.words = [session_id, model_id, sampler_id, saved["path"], f"{model_id}:1", turn]
        self.usual = {
            "model": ["fake", "bot"],
            "base_model": ["fake"],
            "model_id": [model_id],
            "session_id": [session_id],
            "sampling_session_id": [sampler_id],
            "request_id": [f"{model_id}:1", f"{sampler_id}:0"],
            "target": ["fake", saved["path"]],
            "target_id": [turn],
            "deployment": ["bot"],
            "role": ["user", "assistant", "system", "tool"],
            "content": ["11 12", "", None, [{"type": "text", "text": "5"}]],
            "input": ["11 12", [{"role": "user", "content": "3"}]],
            "max_tokens": [1, 4],
            "max_output_tokens": [16],
            "tinker_path": [saved["path"]],
            "source_path": [saved["path"]],
        }

    def _post(self, path: str, content: bytes, media: str) -> None:
        method, _, path = path.rpartition(" ")
        status, body = self.loop.run_until_complete(
            asyncio.wait_for(self._answered(method or "POST", path, content, media), HANGS_SECONDS)
        )
        assert status < 500, f"{method} {path} with {content!r} is answered with {status}: {body!r}"
        if status >= 400:
            assert json.loads(body)["detail"], body

    async def _answered(self, method: str, path: str, content: bytes, media: str) -> tuple[int, bytes]:
        import urllib.parse

        sent, status, parts = False, 0, list[bytes]()

        async def receive() -> dict[str, Any]:
            nonlocal sent
            if sent:
                await asyncio.Event().wait()  # whoever asked stays for the answer
            sent = True
            return {"type": "http.request", "body": content, "more_body": False}

        async def send(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            parts.append(message.get("body", b""))

        headers = [("host", "site"), ("content-type", media), ("x-api-key", self.site.client.headers["x-api-key"])]
        quoted = urllib.parse.quote(path, safe="/", errors="replace").encode()
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": urllib.parse.unquote(quoted.decode()),
            "raw_path": quoted,
            "root_path": "",
            "query_string": b"",
            "headers": [(name.encode(), value.encode()) for name, value in headers],
            "client": ("10.0.0.1", 1),
            "server": ("site", 80),
        }
        await self.site.app(scope, receive, send)
        return status, b"".join(parts)

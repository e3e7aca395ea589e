"""A live server whose engine talks of the weather as a good model would, so that clients can be tried to the end.

Asked about the weather it calls the tool `weather` first, answers when it has heard the result, and fills a schema with
`FORECAST`. Where a request forces a form, what it says must pass the request's own grammar, or the sample fails: so a
client's schema is read, and what it reads back was possible for a model.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import msgspec
import uvicorn

from loreloop.cli.server import RunningServer
from loreloop.config import Config
from loreloop.engine.fake import FakeEngine
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.link import EngineInfo
from loreloop.protocol.sampling import SampleOp
from loreloop.text.grammars.grammar import Constraint, Grammars
from loreloop.text.tokenizer import TextTokenizer
from tests.http.scripted import write_speech
from tests.http.site import site

N_WORDS = 400  # of the tokenizer that `write_speech` makes
TOOL = '{"type": "function", "function"'
PLAIN = "I am well, thank you."
HEARD = "rain tomorrow"
ANSWER = "There will be rain in Oslo."
FORECAST = {"city": "Oslo", "days": 3}
RUN = {"command": f"echo {HEARD}", "description": "Ask the weather"}


class Forecaster(FakeEngine):
    def __init__(self, folder: Path) -> None:
        super().__init__(rooms=32)
        self.tokenizer = TextTokenizer(folder)
        self.folder = folder
        self.says: dict[str, list[int]] = {}

    @property
    def info(self) -> EngineInfo:
        return msgspec.structs.replace(super().info, context_window=1 << 18)

    def admit(self, op: SampleOp) -> bool:
        (chunk,) = op.prompt
        prompt = self.tokenizer.decode([*memoryview(chunk.tokens).cast("i")])
        tried = [[*self.tokenizer.encode(text), op.params.stop_tokens[0]] for text in possible(prompt)]
        if grammar := op.params.grammar:
            grammars = Grammars.of(self.folder, N_WORDS, op.params.stop_tokens)
            tried = [ids for ids in tried if follows(ids, grammars.constraint(grammar))]
        if not tried:
            raise BadRequest(f"Nothing to say fits the grammar {grammar} after {prompt}")
        self.says[op.request_id] = tried[0]
        return super().admit(op)

    def draw(self, op: SampleOp, index: int, position: int) -> int:
        return self.says[op.request_id][position]


def follows(ids: list[int], constraint: Constraint) -> bool:
    """Whether a model could have written these ids, the last of which ends a text."""
    for token in ids:
        if constraint.over or not constraint.allowed()[token]:
            return constraint.over and token == ids[-1]
        constraint.take(token)
    return True


def possible(prompt: str) -> list[str]:
    """What may be said, the fittest first."""
    read = json.JSONDecoder().raw_decode
    tools = [read(line)[0]["function"] for line in prompt.splitlines() if line.startswith(TOOL)]
    asked = "the weather in Oslo" in prompt
    calls = [call for tool in tools if asked for call in called(tool, heard=HEARD in prompt)]
    said = ANSWER if HEARD in prompt else PLAIN
    objects = [json.dumps(FORECAST, separators=separators) for separators in ((",", ":"), (", ", ": "))]
    listed = [json.dumps({"tasks": [FORECAST]}, separators=(",", ":"))]
    if "[[ ## answer ## ]]" in prompt:  # DSPy's own form
        return [f"[[ ## answer ## ]]\n{said}\n\n[[ ## completed ## ]]"]
    if "JSON" in prompt and all(field in prompt for field in FORECAST):
        return [*calls, *objects, *listed, said]
    return [*calls, said, *objects, *listed]


def called(tool: dict[str, Any], *, heard: bool) -> list[str]:
    """The call of one of the tools that are known here, in both spacings of JSON; nothing for others."""
    known = tool["parameters"].get("properties", {}).keys()
    if tool["name"].endswith("weather") and not heard:
        arguments = {"city": "Oslo"}
    elif tool["name"] == "Bash" and not heard:
        arguments = RUN
    elif known == FORECAST.keys():
        arguments = FORECAST
    elif known == {"tasks"}:
        arguments = {"tasks": [FORECAST]}  # instructor's
    elif tool["name"] == "final_answer" and heard:
        arguments = {"answer": ANSWER}
    else:
        return []
    written = [json.dumps(arguments), json.dumps(arguments, separators=(",", ":"))]
    return [f'<tool_call>\n{{"name": "{tool["name"]}", "arguments": {text}}}\n</tool_call>' for text in written]


@contextlib.contextmanager
def forecasting_server() -> Iterator[RunningServer]:
    """On a free port of this machine, in threads of this process; its model is called `fake`."""
    started: Future[tuple[RunningServer, uvicorn.Server]] = Future()
    thread = threading.Thread(target=lambda: asyncio.run(serve(started)))
    thread.start()
    running, server = started.result(60)
    try:
        yield running
    finally:
        server.should_exit = True
        thread.join(60)


async def serve(started: Future[tuple[RunningServer, uvicorn.Server]]) -> None:
    folder: Future[Path] = Future()

    def write(place: Path) -> None:
        write_speech(place)
        folder.set_result(place)

    async with site(Config(), write) as here:
        await here.start_engine(engine=Forecaster(folder.result()))
        with socket.create_server(("127.0.0.1", 0)) as listening:
            url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            settings = uvicorn.Config(here.app, lifespan="off", log_level="warning", timeout_graceful_shutdown=1)
            server = uvicorn.Server(settings)
            started.set_result((RunningServer(url, here.new_key("admin"), os.getpid(), here.office.folder), server))
            await server.serve(sockets=[listening])

"""The whole web application in this process, over a real store and dispatcher, with the fake engine in a thread.

The tokenizer's words are the decimal ids, so that texts can be read as tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from starlette.routing import Mount, Route
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from loreloop.config import Config, LimitConfig, SessionConfig
from loreloop.deployments.model_names import ModelNames
from loreloop.deployments.model_texts import ModelTexts
from loreloop.engine.fake import FakeEngine
from loreloop.host.job_desk import JobDesk
from loreloop.http.application import create_app
from loreloop.http.pictures import Pictures
from loreloop.http.services import Services
from loreloop.protocol import wire_pb2 as wire
from loreloop.store import keys
from tests.host.office import Office, office
from tests.store.place import write_now

PROTOBUF = {"content-type": "application/x-protobuf"}
TEMPLATE = (
    "{% for message in messages %}{{ message.content }} {% endfor %}"
    "{% if enable_thinking is defined %}{{ 21 if enable_thinking else 22 }} {% endif %}"
    "{% if reasoning_effort is defined %}{{ 23 if reasoning_effort == 'low' else 24 }} {% endif %}"
)
Scene = Callable[["Site"], Awaitable[None]]


class Site:
    """`client` speaks with an admin key."""

    def __init__(self, place: Office, services: Services) -> None:
        self.office, self.services = place, services
        self.app = create_app(services)
        self.client = self.client_with(self.new_key("admin"))

    async def start_engine(self, token_seconds: float = 0.0, engine: FakeEngine | None = None) -> None:
        self.office.start_thread(token_seconds, engine=engine)
        await self.services.dispatcher.info("fake")

    def new_key(self, *scopes: str) -> str:
        return write_now(self.office.store, keys.create, "test", scopes, time.time()).secret

    def routes(self) -> Iterator[tuple[str, Route]]:
        """Every route with what its path stands behind."""
        for route in self.app.routes:
            for inner in route.routes if isinstance(route, Mount) else [route]:
                assert isinstance(inner, Route)
                yield (route.path if isinstance(route, Mount) else ""), inner

    def client_with(self, key: str | None) -> httpx.AsyncClient:
        headers = {"x-api-key": key} if key else {}
        transport = httpx.ASGITransport(self.app)
        return httpx.AsyncClient(transport=transport, base_url="http://site/api/v1", headers=headers, timeout=20)

    async def post(self, path: str, body: object, client: httpx.AsyncClient | None = None) -> httpx.Response:
        return await (client or self.client).post(path, json=body)

    async def ok(self, path: str, body: object) -> dict[str, Any]:
        answer = await self.post(path, body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def future(self, request_id: str) -> httpx.Response:
        """The answer once it is no longer pending."""
        while (answer := await self.post("/retrieve_future", {"request_id": request_id})).status_code == 408:
            pass
        return answer

    async def result(self, path: str, body: object) -> dict[str, Any]:
        """Posts an operation and waits for what it says in JSON."""
        return (await self.future((await self.ok(path, body))["request_id"])).json()

    async def session(self) -> str:
        return (await self.ok("/create_session", {"tags": [], "type": "create_session"}))["session_id"]

    async def model(self, session_id: str | None = None, number: int = 0) -> str:
        made = await self.result("/create_model", new_model(session_id or await self.session(), number))
        return made["model_id"]

    async def sampler(self, session_id: str | None = None, number: int = 0, **target: str) -> str:
        body = {"session_id": session_id or await self.session(), "sampling_session_seq_id": number}
        return (await self.ok("/create_sampling_session", body | (target or {"base_model": "fake"})))[
            "sampling_session_id"
        ]

    async def train(self, request: wire.ForwardBackwardRequest) -> httpx.Response:
        return await self.client.post("/forward_backward", content=request.SerializeToString(), headers=PROTOBUF)


def new_model(session_id: str, number: int = 0, **fields: object) -> dict[str, object]:
    usual = {"base_model": "fake", "lora_config": {"rank": 8, "seed": 1}}
    return {"session_id": session_id, "model_seq_id": number, "type": "create_model"} | usual | fields


def step(model_id: str, seq_id: int, **adam: object) -> dict[str, object]:
    return {"model_id": model_id, "seq_id": seq_id, "adam_params": {"learning_rate": 0.1} | adam, "type": "optim_step"}


def save(model_id: str, seq_id: int, name: str, **fields: object) -> dict[str, object]:
    return {"model_id": model_id, "seq_id": seq_id, "path": name} | fields


def sample(sampler_id: str, seq_id: int = 0, tokens: Sequence[int] = (11, 12, 13), **fields: Any) -> dict[str, Any]:
    params = {"max_tokens": 4, "seed": 1} | fields.pop("params", {})
    prompt = {"chunks": [{"tokens": list(tokens), "type": "encoded_text"}]}
    return {"sampling_session_id": sampler_id, "seq_id": seq_id, "prompt": prompt, "sampling_params": params} | fields


def passing(model_id: str, seq_id: int, loss: str = "cross_entropy", n: int = 3) -> wire.ForwardBackwardRequest:
    """A pass over one datum of `n` tokens."""
    datum = wire.Datum(model_input=[wire.Chunk(encoded_text=wire.EncodedTextChunk(tokens=np.ones(n, "<i4").tobytes()))])
    datum.loss_fn_inputs["target_tokens"].CopyFrom(
        wire.Tensor(dtype=wire.DTYPE_INT64, shape=[n], dense=np.ones(n, "<i8").tobytes())
    )
    return wire.ForwardBackwardRequest(model_id=model_id, seq_id=seq_id, data=[datum], loss_fn=loss)


def write_tokenizer(folder: Path) -> None:
    vocab = {"<end>": 0, **{str(number): number for number in range(1, 1000)}}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    # A space before every word but the first of a text.
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    tokenizer.add_special_tokens(["<end>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))


@contextlib.asynccontextmanager
async def site(config: Config, write_tokenizer: Callable[[Path], None] = write_tokenizer) -> AsyncIterator[Site]:
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        async with office(config) as place:
            names = ModelNames({"fake": Path(folder)}, {"org/alias": "fake"})
            desk = JobDesk(config, place.dispatcher, "http://site")
            services = Services(
                config=config,
                store=place.store,
                dispatcher=place.dispatcher,
                names=names,
                texts=ModelTexts(),
                pictures=Pictures(config),
                desk=desk,
                has_worker=True,
            )
            here = Site(place, services)
            async with here.client:
                yield here
            await here.services.sandbox.close()
            await here.services.pictures.close()
            await here.services.grading.close()


def play(
    scene: Scene, *, engine: bool = True, hold_seconds: float = 5.0, hang_seconds: float = 20.0, **limits: int
) -> None:
    """Runs a scene; without an engine everything accepted stays pending. One that lasts `hang_seconds` hangs."""

    async def run() -> None:
        session = SessionConfig(poll_hold_seconds=hold_seconds)
        async with site(Config(session=session, limits=LimitConfig(**limits))) as here:
            if engine:
                await here.start_engine()
            await asyncio.wait_for(scene(here), hang_seconds)

    asyncio.run(run())

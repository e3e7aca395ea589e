"""Runs of learners against a test server: a keeper of positions, short plans, and small conversations."""

from __future__ import annotations

import asyncio
import functools
import os
import warnings
from collections.abc import Sequence
from typing import Any

import tinker
import torch
from safetensors.torch import load_file

from loreloop.cli.server import RunningServer
from loreloop.learn.clients import Clients
from loreloop.learn.examples import Demonstration
from loreloop.learn.learners.sft import Sft
from loreloop.learn.plan import Plan
from loreloop.learn.rendering import Renderer
from loreloop.learn.runner import Position, Run, StepRecord
from loreloop.text.conversation import Conversation, Turn

os.environ["TINKER_TELEMETRY"] = "0"


class Kept:
    """A `Progress` in memory."""

    def __init__(self) -> None:
        self.position: Position | None = None
        self.n_saved = 0

    async def load(self) -> Position | None:
        return self.position

    async def save(self, position: Position) -> None:
        self.position, self.n_saved = position, self.n_saved + 1


def plan(**fields: Any) -> Plan:
    usual = {"base_model": "tiny", "rank": 8, "seed": 1, "batch_size": 3, "learning_rate": 1e-2}
    return Plan(**{**usual, **fields})


def said(*texts: str) -> Conversation:
    """A conversation that begins with the user."""
    return Conversation(tuple(Turn(("user", "assistant")[n % 2], text) for n, text in enumerate(texts)))


def shown(*texts: str) -> Demonstration:
    """One of which all answers are learned."""
    return Demonstration(said(*texts), (1.0,) * len(texts))


def examples(n: int) -> list[Demonstration]:
    return [shown(f"what is {k}?", f"it is {k + 1} and {k}") for k in range(n)]


def service(server: RunningServer) -> tinker.ServiceClient:
    return tinker.ServiceClient(base_url=server.url, api_key=server.key)


def saved_under(server: RunningServer, path: str) -> dict[str, torch.Tensor]:
    """The state that the server has saved under a path, weights and optimizer, tensor by tensor."""
    run, name = path.removeprefix("tinker://").split("/weights/")
    files = [*server.data.glob(f"checkpoints/{run.replace(':', '_')}/weights/{name}/*.safetensors")]
    assert len(files) == 2
    return {f"{file.stem} {name}": tensor for file in files for name, tensor in load_file(file).items()}


async def _sft(renderer: Renderer, made: Plan, clients: Clients) -> Sft:
    return await Sft.of(made, clients, renderer)


def sft_of(renderer: Renderer) -> Any:
    """What makes a learner of demonstrations, for `run_of`."""
    return functools.partial(_sft, renderer)


class Ran:
    """What became of one run."""

    def __init__(self) -> None:
        self.records: list[StepRecord] = []
        self.ending = ""


def run_of(
    server: RunningServer, kind: Any, made: Plan, data: Sequence[Any], *, kept: Kept | None = None, **more: Any
) -> Ran:
    """One run, or its rest where `kept` has a position. `kind` makes a learner of the plan and the clients."""

    async def go() -> Ran:
        ran, keeper = Ran(), kept or Kept()
        with service(server) as client:
            position = await keeper.load()
            clients = Clients(client, made, position.states if position else None)
            held_out = more.pop("held_out", ())
            run = Run(made, clients, await kind(made, clients), keeper, ran.records.append, **more)
            ran.ending = await run.over(data, held_out)
        return ran

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return asyncio.run(go())

"""`python -m bench.soak --minutes 30`: tenants train and others sample, with disconnects and cancels by chance, and the
server must be afterwards as it was after its first minutes.

Asked over HTTP by clients that keep a ledger: every operation that was acknowledged ends exactly once, also where its
POST or its poll was repeated or broken off, and the server has counted as many ends as the ledger has. Memory of all
processes of the server is looked at every second; at the end nothing may be running, waiting or held. Prints figures;
the exit code is 1 where a promise was broken.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import statistics
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from bench.rig import MODEL
from loreloop.cli.server import RunningServer, running_server
from loreloop.protocol import wire_pb2 as wire

TRAINERS, SAMPLERS = 8, 32
WARM_UP_SHARE = 1 / 3  # of the whole time, in which caches fill
MOST_GROWTH = 0.02  # of the memory after that
SETTLES_SECONDS = 20.0
PENDING = 408
PROTOBUF = {"content-type": "application/x-protobuf"}
QUEUES = ("waiting_ops", "waiting_samples", "running_samples")


@dataclass
class Ledger:
    """What was acknowledged, and how it ended; `problems` are the promises that were not kept."""

    accepted: set[str] = field(default_factory=set)
    ends: dict[str, bytes] = field(default_factory=dict)
    cancelled: set[str] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def ended(self, request_id: str, answer: httpx.Response) -> None:
        """An answer that is no longer "not yet"; it may come again, and must then be the same."""
        if answer.status_code != 200 and request_id not in self.cancelled:
            self.problems.append(f"{request_id} ended with {answer.status_code}: {answer.text[:200]}")
        if self.ends.setdefault(request_id, answer.content) != answer.content and request_id not in self.cancelled:
            self.problems.append(f"{request_id} ended twice, and not alike")


@dataclass
class Client:
    """One tenant; `until` is when it ends, on the clock that only goes on."""

    http: httpx.AsyncClient
    ledger: Ledger
    chance: random.Random
    until: float
    model: str

    @property
    def goes_on(self) -> bool:
        """Whether there is time left."""
        return time.monotonic() < self.until

    async def call(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """A request that must be taken."""
        answer = await self.http.post(f"/api/v1{path}", json=body)
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found

    async def accepted(self, send: Any) -> str:
        """The id of an operation, sent once, or twice as by a client that did not hear the first answer."""
        request_id = str((await send()).json()["request_id"])
        self.ledger.accepted.add(request_id)
        if self.chance.random() < 0.1:
            again = (await send()).json()["request_id"]
            self.ledger.counts["repeated"] += 1
            if again != request_id:
                self.ledger.problems.append(f"{request_id} was sent again and became {again}")
        return request_id

    async def result(self, request_id: str) -> None:
        """Polls to the end, and hangs up amid some polls."""
        while True:
            asking = self.http.post("/api/v1/retrieve_future", json={"request_id": request_id})
            try:
                answer = await asyncio.wait_for(asking, 0.05 if self.chance.random() < 0.2 else 60)
            except TimeoutError:
                self.ledger.counts["disconnects"] += 1
                continue
            if answer.status_code != PENDING:
                self.ledger.ended(request_id, answer)
                if self.chance.random() < 0.9:
                    return

    async def train(self) -> None:
        """One tenant trains one adapter."""
        session_id = (await self.call("/create_session", {"tags": [], "type": "create_session"}))["session_id"]
        new = {"session_id": session_id, "model_seq_id": 0, "base_model": self.model, "lora_config": {"rank": 8}}
        await self.result(await self.accepted(lambda: self.http.post("/api/v1/create_model", json=new)))
        model_id, seq_id = f"{session_id}:train:0", 0
        while self.goes_on:
            seq_id += 2
            content = passing(model_id, seq_id - 1, self.chance).SerializeToString()
            step = {"model_id": model_id, "seq_id": seq_id, "adam_params": {"learning_rate": 1e-4}}
            sends = (
                lambda sent=content: self.http.post("/api/v1/forward_backward", content=sent, headers=PROTOBUF),
                lambda sent=step: self.http.post("/api/v1/optim_step", json=sent),
            )
            ids = [await self.accepted(send) for send in sends]
            await asyncio.gather(*map(self.result, ids))
            self.ledger.counts["steps"] += 1
        await self.call(f"/sessions/{session_id}/finish", {"reason": {"type": "success"}})

    async def sample(self) -> None:
        """One tenant samples by Tinker's routes and streams by OpenAI's, and lets some go in their midst."""
        session_id = (await self.call("/create_session", {"tags": [], "type": "create_session"}))["session_id"]
        made = {"session_id": session_id, "sampling_session_seq_id": 0, "base_model": self.model}
        sampler_id = (await self.call("/create_sampling_session", made))["sampling_session_id"]
        seq_id = 0
        while self.goes_on:
            if self.chance.random() < 0.3:
                await self.stream()
                continue
            seq_id += 1
            chunk = {"type": "encoded_text", "tokens": [self.chance.randrange(10, 200) for _ in range(20)]}
            body = {"sampling_session_id": sampler_id, "seq_id": seq_id, "prompt": {"chunks": [chunk]}}
            body |= {"sampling_params": {"max_tokens": self.chance.choice((4, 16, 48)), "seed": seq_id}}
            asked = await self.accepted(lambda sent=body: self.http.post("/api/v1/asample", json=sent))
            if self.chance.random() < 0.15:
                self.ledger.cancelled.add(asked)
                await self.call("/cancel_future", {"request_id": asked})
            await self.result(asked)
        await self.call(f"/sessions/{session_id}/finish", {"reason": {"type": "success"}})

    async def stream(self) -> None:
        """A completion, whose reader leaves at some token or stays to the end."""
        body = {"model": self.model, "prompt": "one two", "max_tokens": 24, "stream": True}
        leaves_at = self.chance.choice((1, 3, 10_000))
        async with self.http.stream("POST", "/v1/completions", json=body) as answer:
            if answer.status_code != 200:
                self.ledger.problems.append(f"a stream began with {answer.status_code}")
            n, whole = 0, False
            async for line in answer.aiter_lines():
                n, whole = n + line.startswith("data: "), whole or line == "data: [DONE]"
                if n >= leaves_at:
                    self.ledger.counts["streams left"] += 1
                    return
            self.ledger.counts["streams read"] += 1
            if not whole:
                self.ledger.problems.append("a stream ended before its answer did")


def passing(model_id: str, seq_id: int, chance: random.Random) -> wire.ForwardBackwardRequest:
    """A pass over one short text."""
    ids = np.array([chance.randrange(10, 200) for _ in range(chance.choice((16, 48)))])
    datum = wire.Datum(
        model_input=[wire.Chunk(encoded_text=wire.EncodedTextChunk(tokens=ids[:-1].astype("<i4").tobytes()))]
    )
    datum.loss_fn_inputs["target_tokens"].CopyFrom(
        wire.Tensor(dtype=wire.DTYPE_INT64, shape=[len(ids) - 1], dense=ids[1:].astype("<i8").tobytes())
    )
    return wire.ForwardBackwardRequest(model_id=model_id, seq_id=seq_id, data=[datum], loss_fn="cross_entropy")


def resident_mib(pid: int) -> float:
    """What the processes of a server hold in memory, without what they share."""
    total = 0
    for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            total += process.memory_full_info().uss
    return total / 2**20


async def watch(pid: int, until: float) -> list[float]:
    """The memory of a server, once a second."""
    found = []
    while time.monotonic() < until:
        found.append(await asyncio.to_thread(resident_mib, pid))
        await asyncio.sleep(1)
    return found


def growth(memory_mib: list[float]) -> float:
    """How much more the last quarter behind the warm-up holds than the first, as a share."""
    warm = memory_mib[int(len(memory_mib) * WARM_UP_SHARE) :]
    quarter = max(1, len(warm) // 4)
    return statistics.median(warm[-quarter:]) / statistics.median(warm[:quarter]) - 1


def metric(text: str, name: str) -> float:
    """The sum of a metric over its labels."""
    return sum(float(value) for value in re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", text, re.M))


async def settled(client: httpx.AsyncClient, ledger: Ledger) -> None:
    """Waits until nothing is in hand; a problem for all that stays."""
    deadline, held = time.monotonic() + SETTLES_SECONDS, ["?"]
    while held and time.monotonic() < deadline:
        await asyncio.sleep(0.5)
        activity = (await client.get("/loop/v1/activity")).json()
        held = [f"sample {one['request_id']}" for one in activity["samples"]]
        held += [f"session {one['id']}" for one in activity["living"]["sessions"]]
        for engine in activity["engines"]:
            held += [f"{engine[queue]} {queue}" for queue in QUEUES if engine[queue]] + engine["executing"]
            ledger.problems += ["an engine has died"] if engine["deaths"] else []
    ledger.problems += [f"left behind: {one}" for one in held]
    text = (await client.get("/metrics")).text
    n_operations = sum(":train:" in each for each in ledger.accepted)
    n_samples = len(ledger.accepted) - n_operations + ledger.counts["streams left"] + ledger.counts["streams read"]
    for kind, n_taken in (("training_operations", n_operations), ("sample_requests", n_samples)):
        n_ends = metric(text, f"loreloop_{kind}_total")
        if n_ends != n_taken:
            ledger.problems.append(f"of {kind} {n_taken} were taken, and {n_ends:g} ended")
    if missing := ledger.accepted - ledger.ends.keys():
        ledger.problems.append(f"{len(missing)} requests never ended, such as {min(missing)}")


async def soak(server: RunningServer, seconds: float, model: str, seed: int = 1) -> tuple[Ledger, list[float]]:
    """Runs all tenants for so long; gives their ledger, and the server's memory by the second."""
    ledger, until = Ledger(), time.monotonic() + seconds
    limits = httpx.Limits(max_connections=None)
    headers = {"x-api-key": server.key}
    async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=120, limits=limits) as http:
        clients = [Client(http, ledger, random.Random(seed + n), until, model) for n in range(TRAINERS + SAMPLERS)]
        work = [one.train() if number < TRAINERS else one.sample() for number, one in enumerate(clients)]
        memory_mib, *_ = await asyncio.gather(watch(server.pid, until), *work)
        await settled(http, ledger)
    return ledger, memory_mib


def main() -> int:
    """Prints what was done, and each promise that was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--model", default=MODEL)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as data:
        if asked.model == MODEL:
            from bench.rig import folder

            Path(data, "models").symlink_to(folder().parent)
        with running_server(data, ["--model", asked.model], durability="power") as server:
            ledger, memory_mib = asyncio.run(soak(server, 60 * asked.minutes, asked.model))
    grown = growth(memory_mib)
    for name, n in sorted(
        {**ledger.counts, "requests": len(ledger.accepted), "cancels": len(ledger.cancelled)}.items()
    ):
        print(f"{name:<14} {n:>10,}")
    print(f"{'memory':<14} {statistics.median(memory_mib[-30:]):>10,.0f} MiB, {grown:+.2%} since the warm-up")
    if grown > MOST_GROWTH:
        ledger.problems.append(f"memory has grown by {grown:.1%}; {MOST_GROWTH:.0%} is the bound")
    print(*ledger.problems[:20], f"{len(ledger.problems)} promises were broken.", sep="\n")
    return int(bool(ledger.problems))


if __name__ == "__main__":
    sys.exit(main())

"""Many streams at once for two minutes through HTTP, on the default model: stalls, errors, memory."""

from __future__ import annotations

import asyncio
import json
import time

import httpx
import numpy as np
import psutil

from bench.rig import MODEL, Figure
from bench.rows.serve import server
from loreloop.cli.server import RunningServer

N_CLIENTS, SECONDS = 256, 120


def streams() -> list[Figure]:
    """256 clients stream answers of 64 tokens, one behind the other; any error ends the row."""
    with server() as running:
        n_pieces, gaps, memory = asyncio.run(load(running))
    return [
        Figure("256 streams: pieces a second", n_pieces / SECONDS, "1/s"),
        Figure("256 streams: gap between tokens, p99", float(np.quantile(gaps, 0.99)), "s"),
        Figure("256 streams: longest gap", max(gaps), "s", at_most=2.0),
        Figure("256 streams: memory at the end over that after half", memory[-1] / memory[len(memory) // 2], "x"),
        Figure("256 streams: memory", memory[-1] / 1e6, "MB"),
    ]


async def listen(client: httpx.AsyncClient, number: int, until: float, gaps: list[float]) -> int:
    """Streams one answer behind the other; gives the number of pieces heard."""
    n_pieces, turn = 0, 0
    while time.monotonic() < until:
        turn += 1
        body = {"model": MODEL, "prompt": f"Story {number} {turn}:", "max_tokens": 64, "stream": True, "seed": turn}
        last = None
        async with client.stream("POST", "/completions", json=body) as response:
            assert response.status_code == 200, await response.aread()
            async for line in response.aiter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                assert "error" not in json.loads(line.removeprefix("data: ")), line
                now = time.monotonic()
                if last is not None:
                    gaps.append(now - last)
                last = now
                n_pieces += 1
    return n_pieces


async def load(running: RunningServer) -> tuple[int, list[float], list[int]]:
    limits = httpx.Limits(max_connections=None)
    headers = {"authorization": f"Bearer {running.key}"}
    gaps: list[float] = []
    memory: list[int] = []
    async with httpx.AsyncClient(
        base_url=f"{running.url}/v1", headers=headers, timeout=120, limits=limits, trust_env=False
    ) as client:
        until = time.monotonic() + SECONDS
        clients = [asyncio.ensure_future(listen(client, number, until, gaps)) for number in range(N_CLIENTS)]
        while time.monotonic() < until:
            await asyncio.sleep(5)
            children = psutil.Process(running.pid).children(recursive=True)
            memory.append(sum(child.memory_info().rss for child in children))
        return sum(await asyncio.gather(*clients)), gaps, memory

"""Many streams at once for minutes, on the real model: no error, no stall, flat memory."""

import asyncio
import json
import time
from pathlib import Path

import httpx
import psutil
import pytest

from loreloop.cli.server import RunningServer, running_server
from loreloop.config import Config
from loreloop.model.catalog import Catalog

N_CLIENTS, SECONDS, MAX_STALL_SECONDS = 256, 120, 2.0
MODEL = "smollm2-135m"
pytestmark = pytest.mark.slow


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


def test_256_streams_for_two_minutes(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / MODEL).symlink_to(Catalog(Config().data_path).ensure(MODEL).folder)
    with running_server(str(tmp_path), ["--model", MODEL]) as running:
        n_pieces, gaps, memory = asyncio.run(load(running))
    middle, last = memory[len(memory) // 2], memory[-1]
    print(f"{n_pieces} pieces, longest gap {max(gaps):.2f} s, memory {middle >> 20} and {last >> 20} MiB")
    assert n_pieces > 10 * N_CLIENTS
    assert max(gaps) <= MAX_STALL_SECONDS
    assert last <= 1.05 * middle

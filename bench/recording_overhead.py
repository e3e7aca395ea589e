"""`python -m bench.recording_overhead`: what recording costs a short chat, on against off, taking turns.

Two deployments of the default model, of which one records, are asked the same by one client and then by several at
once; the median latencies are compared. `--fake` asks the engine of the tests instead, which draws at once, so that
nothing hides the HTTP process's own time. Writes bench/results/recording-overhead.json; to be run on an idle machine.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from dataclasses import dataclass

import httpx

from bench.record import RESULTS, line, write_record
from bench.rig import MODEL, Figure
from bench.rows.serve import server

# Words for the default model; the fake engine's vocabulary are numbers.
ASKED = {MODEL: "Say in one sentence what a lighthouse is for.", "fake": "11 12 13 14 15 16"}
MOST_PERCENT = 2.0


@dataclass(frozen=True)
class Sides:
    """Who asks what of both deployments."""

    client: httpx.AsyncClient
    target: str
    options: argparse.Namespace


async def timed(sides: Sides, side: str) -> float:
    """Seconds of one chat."""
    messages = [{"role": "user", "content": ASKED[sides.target]}]
    body = {"model": f"bench-{side}", "messages": messages, "max_tokens": sides.options.tokens, "temperature": 0}
    began = time.perf_counter()
    answer = await sides.client.post("/v1/chat/completions", json=body | {"user": "bench"})
    seconds = time.perf_counter() - began
    answer.raise_for_status()
    return seconds


async def compared(sides: Sides, n_at_once: int) -> dict[str, float]:
    """Median seconds of both sides. They take turns, chat by chat, and who goes first changes every time."""
    options = sides.options
    seconds: dict[str, list[float]] = {"on": [], "off": []}
    for number in range(options.chats + options.warm):
        for side in ("on", "off") if number % 2 else ("off", "on"):
            found = await asyncio.gather(*(timed(sides, side) for _ in range(n_at_once)))
            if number >= options.warm:
                seconds[side] += found
    return {side: statistics.median(found) for side, found in seconds.items()}


async def figures_of(client: httpx.AsyncClient, options: argparse.Namespace, target: str) -> list[Figure]:
    """The overhead with one client and with several, in percent of the median latency."""
    for side in ("on", "off"):
        body = {"target": target, "record": side == "on"}
        (await client.put(f"/loop/v1/deployments/bench-{side}", json=body)).raise_for_status()
    figures: list[Figure] = []
    for n_at_once in options.at_once:
        median = await compared(Sides(client, target, options), n_at_once)
        about = f"{target}, {n_at_once} at once"
        overhead = 100 * (median["on"] / median["off"] - 1)
        figures.append(Figure(f"recording overhead of p50 ({about})", overhead, "%", at_most=MOST_PERCENT))
        figures.append(Figure(f"p50 without recording ({about})", 1000 * median["off"], "ms"))
    return figures


async def on_fake(options: argparse.Namespace) -> list[Figure]:
    """The same routes over the engine of the tests, in this process."""
    from loreloop.config import Config
    from tests.http.site import site

    async with site(Config()) as here:
        await here.start_engine()
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(here.app), base_url="http://site", headers=here.client.headers
        ) as client:
            found = await figures_of(client, options, "fake")
        await here.services.recorder.close()
        return found


async def on_server(options: argparse.Namespace) -> list[Figure]:
    """The default model, behind a server of its own processes."""
    with server() as running:
        headers = {"authorization": f"Bearer {running.key}"}
        async with httpx.AsyncClient(base_url=running.url, headers=headers, timeout=120, trust_env=False) as client:
            return await figures_of(client, options, MODEL)


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chats", type=int, default=200, help="chats of each side")
    parser.add_argument("--warm", type=int, default=10, help="chats before any is counted")
    parser.add_argument("--tokens", type=int, default=16, help="tokens of an answer")
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--fake", action="store_true", help="the fake engine alone")
    options = parser.parse_args()
    figures = asyncio.run(on_fake(options))
    if not options.fake:
        figures += asyncio.run(on_server(options))
    for figure in figures:
        print(line("recording", figure))
    write_record(RESULTS, "recording-overhead", __doc__ or "", figures, n_chats=options.chats, n_tokens=options.tokens)


if __name__ == "__main__":
    main()

"""`python -m bench.replicas`: two sampling replicas of one thread against one engine of two threads, taking turns.

Both servers stand beside one another, and the one that is not asked sleeps. Each turn asks for many completions at
once, of prompts that have nothing in common, and then for groups of rollouts of one prompt each; the tokens drawn per
second are compared. Writes bench/results/replicas.json; to be run on an idle machine with at least two cores.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from dataclasses import dataclass

import httpx
import numpy as np

from bench.record import RESULTS, line, write_record
from bench.rig import MODEL, Figure, random_ids
from bench.rows.serve import server
from loreloop.cli.server import RunningServer

LEAST = 0.9
SIDES = {"one engine": ("--threads", "2"), "two replicas": ("--threads", "1", "--replicas", "2")}
END_OF_TEXT = "2"  # is never drawn, so that all answers are equally long


@dataclass(frozen=True)
class Load:
    """What one turn asks for: `n_requests` prompts, `n_each` samples of each."""

    name: str
    n_requests: int
    n_each: int


async def turn(client: httpx.AsyncClient, load: Load, options: argparse.Namespace, number: int) -> float:
    """Tokens drawn per second, from the first request to the last answer."""
    # Both sides get the same prompts, and no turn those of another: nothing is found in a cache.
    rng = np.random.default_rng(number)
    prompts = [random_ids(rng, options.prompt).tolist() for _ in range(load.n_requests)]
    body = {"model": options.model, "n": load.n_each, "max_tokens": options.tokens, "temperature": 1.0, "seed": number}
    body |= {"logit_bias": {END_OF_TEXT: -100}}
    began = time.perf_counter()
    answers = await asyncio.gather(*(client.post("/v1/completions", json=body | {"prompt": p}) for p in prompts))
    seconds = time.perf_counter() - began
    for answer in answers:
        answer.raise_for_status()
    n_tokens = sum(answer.json()["usage"]["completion_tokens"] for answer in answers)
    assert n_tokens == load.n_requests * load.n_each * options.tokens
    return n_tokens / seconds


async def ready(running: RunningServer) -> None:
    """Waits until every engine is up: a replica that still loads would leave its share to others."""
    async with httpx.AsyncClient(trust_env=False) as client:
        while not all(one["up"] for one in (await client.get(f"{running.url}/healthz")).json()["engines"]):
            await asyncio.sleep(0.2)


async def compared(running: dict[str, RunningServer], load: Load, options: argparse.Namespace) -> list[Figure]:
    """Who goes first changes every turn; the first turn warms up."""
    rates: dict[str, list[float]] = {side: [] for side in SIDES}
    for number in range(options.turns + 1):
        for side in SIDES if number % 2 else reversed(SIDES):
            headers = {"authorization": f"Bearer {running[side].key}"}
            url = running[side].url
            async with httpx.AsyncClient(base_url=url, headers=headers, timeout=600, trust_env=False) as client:
                rate = await turn(client, load, options, number)
            if number:
                rates[side].append(rate)
    medians = {side: statistics.median(found) for side, found in rates.items()}
    ratio = medians["two replicas"] / medians["one engine"]
    return [
        Figure(f"two replicas of one thread over one engine of two ({load.name})", ratio, "×", at_least=LEAST),
        *(Figure(f"{side} ({load.name})", rate, "tokens/s") for side, rate in medians.items()),
    ]


async def figures_of(running: dict[str, RunningServer], options: argparse.Namespace) -> list[Figure]:
    """All loads, one after the other."""
    for one in running.values():
        await ready(one)
    n = options.samples
    loads = (Load(f"{n} strangers", n, 1), Load(f"{n // 8} groups of 8", n // 8, 8), Load("4 strangers", 4, 1))
    return [figure for load in loads for figure in await compared(running, load, options)]


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=5, help="of each side that are counted")
    parser.add_argument("--samples", type=int, default=32, help="at once")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of a prompt")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of an answer")
    options = parser.parse_args(namespace=argparse.Namespace(model=MODEL))
    with server(*SIDES["one engine"]) as one, server(*SIDES["two replicas"]) as two:
        figures = asyncio.run(figures_of({"one engine": one, "two replicas": two}, options))
    for figure in figures:
        print(line("replicas", figure))
    facts = {"n_turns": options.turns, "n_prompt_tokens": options.prompt, "n_tokens": options.tokens}
    write_record(RESULTS, "replicas", __doc__ or "", figures, **facts)


if __name__ == "__main__":
    main()

"""`python -m bench.jobs_crowd`: twenty small jobs in a queue beside sixteen streams of chat, on the default model.

All by HTTP, as clients have it: the jobs come over OpenAI's API, one after another into the queue, supervised ones and
ones from preferences, and the streams ask for answer after answer until the last job has ended. Writes
bench/results/jobs-crowd.json: how many jobs succeeded and answer by their names, and the gaps between two tokens of a
stream, beside the bounds that docs/benchmarks.md has for streams beside training (rows `together` and `streams`). To be
run on an idle machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import openai

from bench.learn_rig import on_threads, questions
from bench.record import RESULTS, line, write_record
from bench.rig import MODEL, Figure
from bench.rows.serve import server
from loreloop.cli.server import RunningServer

ALONE_SECONDS = 10.0  # of the same streams before the first job
ANSWER_TOKENS = 64
POLL_SECONDS = 1.0
P95_MS, P99_MS, LONGEST_MS = 300.0, 700.0, 2000.0


@dataclass
class Heard:
    """Milliseconds between the tokens of streams, and answers that did not come whole."""

    gaps: list[float] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


@dataclass
class Crowd:
    """Streams that ask for answer after answer; what they hear goes into `heard`, which may be changed meanwhile."""

    client: httpx.AsyncClient
    heard: Heard
    until: asyncio.Event

    async def stream(self, number: int) -> None:
        """One stream, until it is told to end."""
        turn = 0
        while not self.until.is_set():
            turn += 1
            content = f"Story {number} {turn}:"
            body = {"model": MODEL, "messages": [{"role": "user", "content": content}], "max_tokens": ANSWER_TOKENS}
            await self._answer(body | {"stream": True, "seed": turn})

    async def _answer(self, body: dict[str, Any]) -> None:
        last, finished = None, False
        async with self.client.stream("POST", "/chat/completions", json=body) as response:
            if response.status_code != 200:
                self.heard.lost.append(f"{response.status_code}: {(await response.aread())[:200]!r}")
                return
            async for text in response.aiter_lines():
                finished |= text == "data: [DONE]"
                if not text.startswith("data: ") or finished:
                    continue
                event = json.loads(text.removeprefix("data: "))
                if not any(choice["delta"].get("content") for choice in event.get("choices", ())):
                    continue
                now = time.monotonic()
                if last is not None:
                    self.heard.gaps.append(1e3 * (now - last))
                last = now
        if not finished:
            self.heard.lost.append("a stream ended before its answer did")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=20)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--examples", type=int, default=16, help="of each job")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, help="of the engine; by default as many as it finds best")
    options = parser.parse_args()
    with server(*on_threads(options.threads)) as running:
        started = time.monotonic()
        alone, beside, jobs, n_answering = asyncio.run(crowded(running, options))
        seconds = time.monotonic() - started
    succeeded = [job for job in jobs if job.status == "succeeded"]
    figures = [
        Figure("jobs that succeeded", len(succeeded), "jobs", at_least=options.jobs),
        Figure("models of theirs that answer", n_answering, "models", at_least=options.jobs),
        Figure("answers of streams that were lost", len(alone.lost) + len(beside.lost), "answers", at_most=0),
        *gap_figures("streams alone", alone.gaps, bounded=False),
        *gap_figures("streams beside jobs", beside.gaps, bounded=True),
        Figure("seconds in all", seconds, "s"),
    ]
    troubles = [job.error.message for job in jobs if job.error] + alone.lost + beside.lost
    write_record(RESULTS, "jobs-crowd", __doc__ or "", figures, troubles=troubles, options=vars(options))
    for figure in figures:
        print(line("jobs-crowd", figure), flush=True)
    for trouble in troubles:
        print(trouble, flush=True)


async def crowded(running: RunningServer, options: argparse.Namespace) -> tuple[Heard, Heard, Sequence[Any], int]:
    """What streams hear alone and beside jobs, the jobs as they ended, and how many of their models answer."""
    headers = {"authorization": f"Bearer {running.key}"}
    address, until = f"{running.url}/v1", asyncio.Event()
    client = openai.AsyncOpenAI(base_url=address, api_key=running.key, max_retries=0, timeout=600)
    async with httpx.AsyncClient(base_url=address, headers=headers, timeout=600, trust_env=False) as http:
        alone, beside = Heard(), Heard()
        crowd = Crowd(http, alone, until)
        streams = [asyncio.ensure_future(crowd.stream(number)) for number in range(options.streams)]
        await asyncio.sleep(ALONE_SECONDS)
        crowd.heard = beside
        jobs = [await begun(client, number, options) for number in range(options.jobs)]
        jobs = [await ended(client, job.id) for job in jobs]
        until.set()
        await asyncio.gather(*streams)
        return alone, beside, jobs, sum([await answers(client, job.fine_tuned_model) for job in jobs])


async def begun(client: openai.AsyncOpenAI, number: int, options: argparse.Namespace) -> Any:
    """Every fourth job learns from preferences, the others from demonstrations."""
    asked = [prompt.turns[0].content for prompt in questions(options.examples)]
    kind = "dpo" if number % 4 == 3 else "supervised"
    lines = "\n".join(json.dumps(_line(kind, text, number)) for text in asked)
    file = await client.files.create(file=(f"{number}.jsonl", lines.encode()), purpose="fine-tune")
    method = {"type": kind, kind: {"hyperparameters": {"n_epochs": 1, "batch_size": options.batch}}}
    return await client.fine_tuning.jobs.create(
        model=MODEL,
        training_file=file.id,
        method=method,  # type: ignore[arg-type]
        seed=number,
    )


def _line(kind: str, text: str, number: int) -> dict[str, Any]:
    """An example that is a job's own."""
    asked = [{"role": "user", "content": text}]
    good = [{"role": "assistant", "content": f"Crowd {number} says: that is well known."}]
    if kind == "supervised":
        return {"messages": asked + good}
    bad = [{"role": "assistant", "content": "I would rather not say anything about that today."}]
    return {"input": {"messages": asked}, "preferred_output": good, "non_preferred_output": bad}


async def ended(client: openai.AsyncOpenAI, job_id: str) -> Any:
    """The job when it has ended, however it did."""
    while True:
        job = await client.fine_tuning.jobs.retrieve(job_id)
        if job.status in ("succeeded", "failed", "cancelled"):
            print(job.status, job.fine_tuned_model or job.error, flush=True)
            return job
        await asyncio.sleep(POLL_SECONDS)


async def answers(client: openai.AsyncOpenAI, model: str | None) -> bool:
    """Whether a model answers by its name."""
    if model is None:
        return False
    asked: list[Any] = [{"role": "user", "content": "Tell me of a river."}]
    answer = await client.chat.completions.create(model=model, messages=asked, max_tokens=4)
    return bool(answer.choices)


def gap_figures(name: str, gaps: Sequence[float], *, bounded: bool) -> list[Figure]:
    """Of milliseconds between tokens; with the bounds of the documents or without."""
    at = np.quantile(gaps, (0.5, 0.95, 0.99))
    return [
        Figure(f"{name}: gap between tokens, p50", float(at[0]), "ms"),
        Figure(f"{name}: gap between tokens, p95", float(at[1]), "ms", at_most=P95_MS if bounded else None),
        Figure(f"{name}: gap between tokens, p99", float(at[2]), "ms", at_most=P99_MS if bounded else None),
        Figure(f"{name}: longest gap", max(gaps), "ms", at_most=LONGEST_MS if bounded else None),
    ]


if __name__ == "__main__":
    main()

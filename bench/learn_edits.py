"""`python -m bench.learn_edits`: hindsight, KTO and SFT on the same edits of the same answers.

The base model answers; a user edits every answer the same way. Each learner gets the same events, steps and rate from
its own list, the best of which counts. Held out: how often the edit's form is kept to unasked, and the log-probability
of edited answers. Writes bench/results/learn-edits.json. It measures quality, so other work may go on beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tinker

from bench.learn_rig import Make, on_threads, questions, run, sampler_of
from bench.record import RESULTS, line, write_record
from bench.rig import MODEL, Figure, folder
from bench.rows.serve import server
from loreloop.cli.server import RunningServer
from loreloop.learn.clients import Clients
from loreloop.learn.examples import Demonstration, Mark, Told
from loreloop.learn.learners.hindsight import Hindsight
from loreloop.learn.learners.hindsight_loop import HindsightLearner
from loreloop.learn.learners.kto import Kto
from loreloop.learn.learners.sft import Sft
from loreloop.learn.plan import Plan
from loreloop.learn.rendering import Renderer, renderer_of
from loreloop.learn.settings import KtoSettings
from loreloop.text.conversation import Conversation, Turn

ENDING = "Hope that helps!"  # what the user puts at the end of every answer's first sentence
ANSWER_TOKENS = 40
RATES = {"sft": (1e-4, 3e-4), "kto": (3e-5, 1e-4), "hindsight": (3e-5, 1e-4)}


@dataclass(frozen=True)
class Event:
    """An answer of the base model, and the user's edit of it."""

    prompt: Conversation
    answer: str
    edited: str


@dataclass(frozen=True)
class Found:
    """Of held-out prompts: how often the edit's form is kept to, and nats a token of edited answers."""

    kept: float
    logprob: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--events", type=int, default=48)
    parser.add_argument("--held-out", type=int, default=24)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of the engine; by default as many as it finds best")
    options = parser.parse_args()
    found: dict[str, list[Found]] = {}
    with server(*on_threads(options.threads)) as running:
        events = asyncio.run(answered(running, options.events + options.held_out))
        learned, held_out = events[: options.events], events[options.events :]
        before = asyncio.run(judged(running, None, held_out))
        for name, rates in RATES.items():
            for rate in rates:
                for seed in range(1, options.seeds + 1):
                    path = trained(running, name, rate, seed, learned, options.epochs)
                    one = asyncio.run(judged(running, path, held_out))
                    found.setdefault(f"{name} {rate:g}", []).append(one)
                    print(name, rate, seed, one, flush=True)
    figures = [Figure("before: edits kept to", before.kept, "share"), Figure("before: edits", before.logprob, "nats")]
    for name in RATES:
        sides = {label: values for label, values in found.items() if label.startswith(name)}
        best = max(sides, key=lambda label: statistics.mean(one.kept for one in sides[label]))
        figures.append(Figure(f"{best}: edits kept to", statistics.mean(one.kept for one in sides[best]), "share"))
        figures.append(Figure(f"{best}: edits", statistics.mean(one.logprob for one in sides[best]), "nats"))
    write_record(RESULTS, "learn-edits", __doc__ or "", figures, all=found, options=vars(options))
    for figure in figures:
        print(line("learn-edits", figure), flush=True)


async def answered(running: RunningServer, n: int) -> list[Event]:
    """The base model's answers to as many prompts, with their edits."""
    prompts = questions(n)
    answers = await sampled(running, None, prompts)
    return [Event(prompt, answer, edit(answer)) for prompt, answer in zip(prompts, answers, strict=True)]


def edit(answer: str) -> str:
    return f"{answer.strip().split('. ')[0].rstrip('.')}. {ENDING}"


async def sampled(running: RunningServer, path: str | None, prompts: Sequence[Conversation]) -> list[str]:
    renderer = renderer_of(folder())
    with tinker.ServiceClient(base_url=running.url, api_key=running.key) as service:
        sampler = await sampler_of(service, path)
        params = tinker.SamplingParams(max_tokens=ANSWER_TOKENS, temperature=0.0, stop=renderer.stop)
        asked = [sampler.sample(renderer.prompt(prompt), 1, params) for prompt in prompts]
        found = [await each for each in asked]
    return [renderer.answer(each.sequences[0].tokens).text for each in found]


async def judged(running: RunningServer, path: str | None, held_out: Sequence[Event]) -> Found:
    renderer = renderer_of(folder())
    answers = await sampled(running, path, [event.prompt for event in held_out])
    kept = statistics.mean(answer.strip().endswith(ENDING) for answer in answers)
    scores: list[float] = []
    with tinker.ServiceClient(base_url=running.url, api_key=running.key) as service:
        sampler = await sampler_of(service, path)
        for event in held_out:
            (row,) = renderer.weighted(demonstration(event))
            found = await sampler.compute_logprobs(tinker.ModelInput.from_ints(row.tokens))
            scores += [score or 0.0 for score, weight in zip(found, row.weights, strict=True) if weight]
    return Found(kept, statistics.mean(scores))


def demonstration(event: Event) -> Demonstration:
    turns = (*event.prompt.turns, Turn("assistant", event.edited))
    return Demonstration(Conversation(turns), (0.0,) * len(event.prompt.turns) + (1.0,))


def data_of(name: str, events: Sequence[Event]) -> list[Any]:
    """The same events as each learner takes them."""
    if name == "sft":
        return [demonstration(event) for event in events]
    if name == "kto":
        pairs = [(event, text, text == event.edited) for event in events for text in (event.answer, event.edited)]
        return [Mark(e.prompt, Conversation((Turn("assistant", text),)), wanted) for e, text, wanted in pairs]
    return [
        Told(e.prompt, Conversation((Turn("assistant", e.answer),)), f"The user changed it to: {e.edited}")
        for e in events
    ]


def trained(running: RunningServer, name: str, rate: float, seed: int, events: Sequence[Event], epochs: int) -> str:
    data = data_of(name, events)
    # Marks are two an event, so that a step of each learner sees eight events.
    batch = 16 if name == "kto" else 8
    plan = Plan(base_model=MODEL, seed=seed, batch_size=batch, epochs=epochs, learning_rate=rate, save_every=10_000)

    async def make(plan: Plan, clients: Clients, renderer: Renderer) -> Any:
        if name == "sft":
            return await Sft.of(plan, clients, renderer)
        if name == "kto":
            return await Kto.of(plan, clients, renderer, KtoSettings(), data)
        return await HindsightLearner.of(plan, clients, renderer, Hindsight())

    made: Make = make
    ran = run(running, plan, made, data)
    assert ran.position is not None
    return ran.position.checkpoints[-1].path


if __name__ == "__main__":
    main()

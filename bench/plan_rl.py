"""`python -m bench.plan_rl`: the simulated loop beside real ones: the default model with one and with two replicas.

A loop through the SDK draws answers of unequal lengths and learns from them, by turns (staleness 0) or with the next
answers drawn beside learning (staleness 1). The simulation gets the lengths that came out, and the planner's times with
constants fitted to bench/results/plan-times.json, which must have been measured on this machine with one thread; the
hand-over is that of bench/results/handover.json. Every engine has one thread. Two replicas draw beside a learning
engine only on three cores or more. Writes bench/results/plan-rl.json; to be run on an idle machine. `--quick` makes
three small steps, and writes nothing unless `--results` says where.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tinker

from bench.plan_fit import base_of, device_of, machine_of, rates_of
from bench.record import RESULTS, line, write_record
from bench.rig import MODEL, Figure, folder, n_cores, random_ids
from bench.rows.rl import answer_datum
from bench.rows.serve import server
from loreloop.cli.serve import MEMORY
from loreloop.plan.lengths import drawn, of_mean
from loreloop.plan.simulation import Course, Engines, played
from loreloop.plan.wish import Wish

RANK = 32
MOST_ERROR = 0.10
KIND_OF_RUN = ("one replica, by turns", "two replicas, by turns", "one replica, beside", "two replicas, beside")


@dataclass(frozen=True)
class Loop:
    """Steps of `batch` prompts with `group` answers each; lengths are drawn by a log-normal law."""

    n_steps: int = 12
    warm_up: int = 3
    batch: int = 8
    group: int = 8
    prompt: int = 64
    mean: int = 48
    most: int = 192


QUICK = Loop(n_steps=3, warm_up=1, batch=2, group=4, prompt=32, mean=8, most=24)


@dataclass(frozen=True)
class Run:
    """What a real loop took a step, in seconds, and the lengths of all answers in their order."""

    step_seconds: float
    lengths: list[int]


class RealLoop:
    """One loop against one server."""

    def __init__(self, client: tinker.TrainingClient, loop: Loop, staleness: int) -> None:
        self.client, self.loop, self.staleness = client, loop, staleness
        self.rng = np.random.default_rng(7)
        self.asked: list[list[tuple[Any, Future[tinker.SampleResponse]]]] = []
        self.lengths = drawn(of_mean(loop.mean), loop.batch * (loop.n_steps + staleness + 1), 7, loop.most)
        self.found: list[int] = []

    def run(self) -> Run:
        """All steps; the warm-up is not counted."""
        sampler = self.client.save_weights_and_get_sampling_client().result()
        for _ in range(self.staleness + 1):
            self._ask(sampler)
        ends = []
        for step in range(self.loop.n_steps):
            data = self._answers(step)
            passed = self.client.forward_backward(data, "importance_sampling")
            stepped = self.client.optim_step(tinker.AdamParams(learning_rate=1e-5))
            passed.result()
            stepped.result()
            ends.append(time.perf_counter())
            sampler = self.client.save_weights_and_get_sampling_client().result()
            self._ask(sampler)
        # What was drawn beside the last steps is waited for, since nobody would learn from it.
        for _, future in (one for asked in self.asked[self.loop.n_steps :] for one in asked):
            future.result()
        # The end of the last step of the warm-up is where the clock begins.
        counted = ends[self.loop.warm_up - 1 :]
        return Run((counted[-1] - counted[0]) / (len(counted) - 1), self.found)

    def _ask(self, sampler: tinker.SamplingClient) -> None:
        """Asks for the answers of the next step. Those to one prompt are equally long, and one request: so their prompt
        is read once."""
        loop, asked = self.loop, []
        for place in range(loop.batch):
            prompt = random_ids(self.rng, loop.prompt)
            length = self.lengths[(len(self.asked) * loop.batch + place) % len(self.lengths)]
            params = tinker.SamplingParams(max_tokens=length, temperature=1.0)
            future = sampler.sample(tinker.ModelInput.from_ints(prompt.tolist()), loop.group, params)
            asked.append((prompt, future))
        self.asked.append(asked)

    def _answers(self, step: int) -> list[tinker.Datum]:
        data = []
        for prompt, future in self.asked[step]:
            for place, sequence in enumerate(future.result().sequences):
                # An answer may end before the length that was asked for.
                self.found.append(len(sequence.tokens))
                data.append(answer_datum(prompt, sequence, 1.0 if place % 2 else -1.0))
        return data


def simulated(loop: Loop, run: Run, times: dict[str, Any], n_replicas: int, staleness: int) -> float:
    """Seconds a step by the simulation."""
    rates, mean = rates_of(times, 1), round(statistics.mean(run.lengths))
    base = base_of(json.loads((folder() / "config.json").read_text()), MODEL)
    wish = Wish(
        rank=RANK,
        context=loop.prompt + mean,
        response=mean,
        batch=loop.batch,
        group=loop.group,
        rows=512,
        kept=True,
    )
    machine = machine_of(base, wish, device_of(times, 1))
    n_read = loop.batch * loop.prompt
    train_seconds = machine.training(wish).seconds(rates["train"])
    engines = Engines(
        n_samplers=n_replicas,
        room=256,
        token_seconds=lambda n: machine.token(wish, n).seconds(rates["draw"]),
        read_seconds=machine.reading(replace(wish, rows=min(512, n_read)), n_read).seconds(rates["read"]) / n_read,
        train_seconds=lambda n_rows: train_seconds * n_rows / wish.trained_rows,
        handover_seconds=_handover(),
    )
    course = Course(
        batch=loop.batch,
        group=loop.group,
        prompt=loop.prompt,
        n_steps=loop.n_steps,
        warm_up=loop.warm_up,
        staleness=staleness,
    )
    return played(engines, course, run.lengths).step_seconds


def _handover() -> float:
    record = json.loads((RESULTS / "handover.json").read_text())
    (milliseconds,) = (one["value"] for one in record["figures"] if one["name"].startswith("SDK:"))
    return float(milliseconds) / 1e3


def figures_of(loop: Loop, times: dict[str, Any]) -> list[Figure]:
    """All runs, one after the other, each with a server of its own."""
    figures = []
    for name in KIND_OF_RUN:
        n_replicas, staleness = (1 if name.startswith("one") else 2), (1 if name.endswith("beside") else 0)
        if n_replicas + staleness > n_cores():
            missing = f"{n_replicas + staleness} cores, one for each engine at work"
            figures.append(Figure(f"{name}: simulated over real", None, "x", missing=missing))
            continue
        with (
            server("--threads", "1", "--replicas", str(n_replicas)) as running,
            tinker.ServiceClient(base_url=running.url, api_key=running.key) as service,
        ):
            client = service.create_lora_training_client(MODEL, rank=RANK, train_unembed=False).result()
            run = RealLoop(client, loop, staleness).run()
        expected = simulated(loop, run, times, n_replicas, staleness)
        ratio = expected / run.step_seconds
        figures += [
            Figure(f"{name}: a real step", run.step_seconds, "s"),
            Figure(f"{name}: a simulated step", expected, "s"),
            Figure(f"{name}: simulated over real", ratio, "x", 1 - MOST_ERROR, 1 + MOST_ERROR),
        ]
        for figure in figures[-3:]:
            print(line("plan-rl", figure), flush=True)
    return figures


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.plan_rl", description=__doc__)
    parser.add_argument("--times", type=Path, default=RESULTS / "plan-times.json", help="the record to fit")
    parser.add_argument("--quick", action="store_true", help="three small steps")
    parser.add_argument("--results", type=Path, help="a folder for the record")
    options = parser.parse_args(arguments)
    if not options.times.exists():
        sys.exit(f"{options.times} is not there; run `python -m bench.plan_times` first, or name a record by --times.")
    times, loop = json.loads(options.times.read_text()), QUICK if options.quick else Loop()
    started = time.monotonic()
    figures = figures_of(loop, times)
    if results := options.results or (None if options.quick else RESULTS):
        seconds = round(time.monotonic() - started, 1)
        write_record(results, "plan-rl", __doc__ or "", figures, seconds=seconds, loop=loop)
    return 0


if __name__ == "__main__":
    if any(os.environ.get(key) != value for key, value in MEMORY.items()):
        # As in `python -m bench`: the allocator's settings are those of `loreloop serve`.
        os.execve(sys.executable, [sys.executable, "-m", "bench.plan_rl", *sys.argv[1:]], os.environ | MEMORY)
    sys.exit(main(sys.argv[1:]))

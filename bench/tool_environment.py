"""`python -m bench.tool_environment`: a small model learns to order in a shop whose API fails at random.

Orders need two answers at least: the order's number, which is asked for, comes from the call. Three calls in ten time
out. Writes bench/results/tool-environment.json: the share of held-out orders that succeed before and after, with goods
and counts that are never trained on together. What counts are answers that are drawn as in training: the likeliest ones
of the base model make up a tool's result and never succeed, so that twice their share would be nothing. It measures
quality, so other work may go on beside it; `--steps` makes it shorter.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass

from bench.learn_rig import Ran, on_threads, run
from bench.record import RESULTS, line, write_record
from bench.rig import MODEL, Figure
from bench.rows.serve import server
from loreloop.cli.server import RunningServer
from loreloop.learn.environments.flaky_shop import SHOWN, FlakyShop, shop_tasks
from loreloop.learn.examples import Task
from loreloop.learn.learners.from_rewards import Sampling, Ways, reward_learner
from loreloop.learn.learners.grpo import Grpo
from loreloop.learn.plan import Plan
from loreloop.learn.rollouts.drawing import AnswerLimits

ANSWER_TOKENS, TURNS = 36, 5  # a call has about 25 tokens; five answers bear three faults
SUCCESS = "valid_part_told"  # the wanted order, made once, and its number told
FAULTS = "valid_part_timed_out_calls"


@dataclass(frozen=True)
class Look:
    """After so many steps: the share of held-out orders that succeed, by the likeliest answers and by drawn ones, and
    how many calls of a drawn one timed out."""

    steps: int
    likeliest: float
    drawn: float
    faults: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--rate", type=float, default=4e-4)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--fault-rate", type=float, default=0.3)
    parser.add_argument("--exam", type=int, default=64, help="held-out orders of each exam")
    parser.add_argument("--samples", type=int, default=4, help="episodes that are drawn for each held-out order")
    parser.add_argument("--every", type=int, default=0, help="steps between two exams; 0: one at the end")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, help="of the engine; by default as many as it finds best")
    options = parser.parse_args()
    with server(*on_threads(options.threads)) as running:
        started = time.monotonic()
        ran = learn(running, options)
        seconds = time.monotonic() - started
    before, after = ran.learner.looks[0], ran.learner.looks[-1]
    figures = [
        Figure("held-out orders that succeed, before", before.drawn, "share"),
        # Twice nothing would be met by learning nothing.
        Figure("held-out orders that succeed, after", after.drawn, "share", at_least=max(2 * before.drawn, 0.1)),
        Figure("calls of an order that timed out, after", after.faults, "calls"),
        Figure("the same orders by the likeliest answers, before", before.likeliest, "share"),
        Figure("the same orders by the likeliest answers, after", after.likeliest, "share"),
        Figure("seconds, with all exams", seconds, "s"),
    ]
    rewards = [round(record.metrics["train_reward_mean"], 4) for record in ran.records]
    told = [round(record.metrics["train_part_told"], 4) for record in ran.records]
    facts = {"rewards": rewards, "told": told, "looks": [asdict(look) for look in ran.learner.looks]}
    write_record(RESULTS, "tool-environment", __doc__ or "", figures, **facts, options=vars(options))
    for figure in figures:
        print(line("tool-environment", figure), flush=True)


def learn(running: RunningServer, options: argparse.Namespace) -> Ran:
    exam = shop_tasks(options.exam, options.seed + 1000, shown=len(SHOWN), held_out=True)
    plan = Plan(
        base_model=MODEL,
        seed=options.seed,
        train_unembed=False,
        batch_size=options.batch,
        steps=options.steps,
        learning_rate=options.rate,
        final_share=0.2,
        save_every=1000,
    )
    limits = AnswerLimits(most_tokens=ANSWER_TOKENS, most_turns=TURNS, temperature=options.temperature)

    async def make(plan, clients, renderer):  # type: ignore[no-untyped-def]
        learner = await reward_learner(
            plan,
            clients,
            renderer,
            lambda: FlakyShop(options.fault_rate),
            Ways(Grpo(normalisation="tokens")),
            Sampling(options.group_size, limits),
        )
        learner.looks = [await looked_at(learner, exam, 0, options.samples)]
        told = learner.step

        async def step(batch, at):  # type: ignore[no-untyped-def]
            handed_in = await told(batch, at)
            metrics = await handed_in
            print(f"step {at.step + 1}: told {metrics['train_part_told']:.3f}", flush=True)
            done = at.step + 1
            if done == options.steps or (options.every and done % options.every == 0):
                learner.looks.append(await looked_at(learner, exam, done, options.samples))
            return _given(metrics)

        learner.step = step
        return learner

    return run(running, plan, make, shop_tasks(options.steps * options.batch, options.seed, shown=len(SHOWN)))


async def looked_at(learner, exam: list[Task], done: int, samples: int) -> Look:  # type: ignore[no-untyped-def]
    """The held-out orders by the weights as they are after `done` steps, with `samples` drawn episodes each."""
    learner.eval_samples = 1
    likeliest = (await learner.evaluate(exam))[SUCCESS]
    learner.eval_samples = samples
    drawn = await learner.evaluate(exam)
    look = Look(done, likeliest, drawn[SUCCESS], drawn[FAULTS])
    print(look, flush=True)
    return look


async def _given(metrics):  # type: ignore[no-untyped-def]
    return metrics


if __name__ == "__main__":
    main()

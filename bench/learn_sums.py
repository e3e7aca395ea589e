"""`python -m bench.learn_sums`: two-digit sums by rewards alone, from the base model, in file order.

Writes bench/results/learn-sums.json: held-out sums before and after, and the seconds in between. To be run on an idle
machine; `--steps` in both halves makes it shorter.
"""

from __future__ import annotations

import argparse
import time

from bench.learn_rig import Curriculum, Ran, exact, held_out, on_threads, run
from bench.record import RESULTS, line, write_record
from bench.rig import MODEL, Figure
from bench.rows.serve import server
from loreloop.cli.server import RunningServer
from loreloop.learn.environments.environment import OneAnswer
from loreloop.learn.learners.from_rewards import Sampling, Ways, reward_learner
from loreloop.learn.learners.grpo import Grpo
from loreloop.learn.plan import Plan
from loreloop.learn.rollouts.drawing import AnswerLimits

ANSWER_TOKENS = 12  # enough for "23 + 45 = 68"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one-steps", type=int, default=8)
    parser.add_argument("--two-steps", type=int, default=62)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--review", type=int, default=5)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--rate", type=float, default=4e-4)
    parser.add_argument("--final", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every", type=int, default=0, help="steps between two looks at the held-out sums")
    parser.add_argument("--exam", type=int, default=200, help="held-out sums of each exam")
    parser.add_argument("--threads", type=int, help="of the engine; by default as many as it finds best")
    options = parser.parse_args()
    with server(*on_threads(options.threads)) as running:
        started = time.monotonic()
        ran = learn(running, options)
        seconds = time.monotonic() - started
    figures = [
        Figure("held-out two-digit sums, before", ran.learner.before, "share", at_most=0.10),
        Figure("held-out two-digit sums, after", last(ran), "share", at_least=0.85),
        Figure("seconds, with all exams", seconds, "s", at_most=900),
    ]
    rewards = [round(record.metrics["train_reward_mean"], 4) for record in ran.records]
    write_record(RESULTS, "learn-sums", main.__doc__ or __doc__ or "", figures, rewards=rewards, options=vars(options))
    for figure in figures:
        print(line("learn-sums", figure), flush=True)


def learn(running: RunningServer, options: argparse.Namespace) -> Ran:
    curriculum = Curriculum(options.one_steps, options.two_steps, options.batch, options.review)
    tasks, exam = curriculum.tasks(options.seed), held_out(options.exam)
    plan = Plan(
        base_model=MODEL,
        seed=options.seed,
        train_unembed=False,
        batch_size=options.batch,
        shuffled=False,
        learning_rate=options.rate,
        final_share=options.final,
        eval_every=options.every,
        save_every=1000,
    )
    sampling = Sampling(options.group_size, AnswerLimits(most_tokens=ANSWER_TOKENS))

    async def make(plan, clients, renderer):  # type: ignore[no-untyped-def]
        learner = await reward_learner(
            plan, clients, renderer, lambda: OneAnswer(exact), Ways(Grpo(normalisation="tokens")), sampling
        )
        learner.before = (await learner.evaluate(exam))["valid_reward_mean"]
        told = learner.step

        async def step(batch, at):  # type: ignore[no-untyped-def]
            handed_in = await told(batch, at)

            async def tell():  # type: ignore[no-untyped-def]
                metrics = await handed_in
                print(f"step {at.step + 1}/{at.n_steps} reward {metrics['train_reward_mean']:.3f}", flush=True)
                return metrics

            return tell()

        learner.step = step  # type: ignore[method-assign]
        return learner

    return run(running, plan, make, tasks, exam)


def last(ran: Ran) -> float:
    found = [record.metrics["valid_reward_mean"] for record in ran.records if "valid_reward_mean" in record.metrics]
    return found[-1]


if __name__ == "__main__":
    main()

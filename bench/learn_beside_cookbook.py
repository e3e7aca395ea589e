"""`python -m bench.learn_beside_cookbook`: our learners beside the cookbook's own loop, on its arithmetic.

The same environments, answers, rates and ranks; five runs of each side, all from the same weights: the base model knows
hardly any of these sums, and in so few steps nobody would learn anything that tells the sides apart, so it is shown
some sums first. bench/results/learn-beside-cookbook.json gets the share of right answers over each run's first and last
steps. It takes about an hour.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tinker_cookbook import renderers
from tinker_cookbook.recipes.math_rl.arithmetic_env import ArithmeticDataset, ArithmeticEnv
from transformers import AutoTokenizer

from bench.learn_rig import run
from bench.record import RESULTS, line, write_record
from bench.rig import MODEL, Figure, folder
from bench.rows.serve import server
from loreloop.cli.server import RunningServer
from loreloop.learn.clients import POLICY, Clients
from loreloop.learn.environments.cookbook import CookbookPlayer, builders_of
from loreloop.learn.examples import Demonstration
from loreloop.learn.learners.cispo import Cispo
from loreloop.learn.learners.evidence import Evidence
from loreloop.learn.learners.from_rewards import VALUE, score_tokens
from loreloop.learn.learners.grpo import Grpo
from loreloop.learn.learners.policy import PolicyLearner
from loreloop.learn.learners.ppo import Ppo
from loreloop.learn.learners.reinforce import Reinforce
from loreloop.learn.learners.reinforce_loop import RewardLearner
from loreloop.learn.learners.sft import Sft
from loreloop.learn.learners.value_adapter import Scale, ValueAdapter
from loreloop.learn.plan import Plan
from loreloop.learn.rendering import Renderer
from loreloop.learn.rollouts.drawing import AnswerLimits, Policy, Requests
from loreloop.text.conversation import Conversation, Turn

FAMOUS = "Qwen/Qwen3-8B-Base"  # the recipe knows famous models only
RENDERER = "qwen3_instruct"  # the model's own chat format
LEARNERS: dict[str, PolicyLearner] = {"grpo": Grpo(), "ppo": Ppo(), "cispo": Cispo(), "reinforce": Reinforce()}
LOWEST, HIGHEST = -0.1, 1.0  # that an answer of the arithmetic recipe can earn
MOST_BELOW = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--tail", type=int, default=5, help="first and last steps of a run that count")
    parser.add_argument("--groups", type=int, default=8)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--rate", type=float, default=2e-4)
    parser.add_argument("--value-rate", type=float, default=1e-3)
    parser.add_argument("--only", nargs="*", default=[*LEARNERS])
    parser.add_argument("--shown", type=int, default=768, help="sums that the model is shown first")
    parser.add_argument("--shown-rate", type=float, default=3e-4)
    parser.add_argument("--threads", type=int, help="of the engine; by default as many as it finds best")
    options = parser.parse_args()
    ran: dict[str, list[Course]] = {"cookbook": [], **{name: [] for name in options.only}}
    threads = ["--threads", str(options.threads)] if options.threads else []
    with server("--alias", f"{FAMOUS}={MODEL}", *threads) as running:
        start = shown(running, options)
        for seed in range(1, options.seeds + 1):
            # One run of each side after another, so that all meet the machine as it is then.
            ran["cookbook"].append(cookbooks(running, start, options))
            for name in options.only:
                ran[name].append(ours(running, LEARNERS[name], start, seed, options))
            print(seed, {name: ran[name][-1] for name in ran}, flush=True)
    means = {name: statistics.mean(one.last for one in courses) for name, courses in ran.items()}
    first = statistics.mean(one.first for courses in ran.values() for one in courses)
    figures = [
        Figure("all sides, first steps", first, "share"),
        # Where nothing is learned, no side can fall behind, and the comparison says nothing.
        Figure("cookbook's own loop, last steps", means["cookbook"], "share", at_least=first + 2 * MOST_BELOW),
    ]
    for name in options.only:
        figures.append(Figure(f"{name}, last steps", means[name], "share"))
        below = means["cookbook"] - means[name]
        figures.append(Figure(f"{name}: below the cookbook's", below, "share", at_most=MOST_BELOW))
    write_record(RESULTS, "learn-beside-cookbook", __doc__ or "", figures, ran=ran, options=vars(options))
    for figure in figures:
        print(line("learn-beside-cookbook", figure), flush=True)


@dataclass(frozen=True)
class Course:
    """The share of right answers over a run's first and last steps."""

    first: float
    last: float


def course_of(shares: Sequence[float], n_steps: int) -> Course:
    return Course(statistics.mean(shares[:n_steps]), statistics.mean(shares[-n_steps:]))


def shown(running: RunningServer, options: argparse.Namespace) -> str:
    """A checkpoint of the model when it has seen some sums with their answers, in the environment's own words."""
    plan = Plan(
        base_model=MODEL,
        seed=0,
        batch_size=32,
        learning_rate=options.shown_rate,
        save_every=max(1, options.shown // 32),
    )
    chance = random.Random(0)
    before = tuple(Turn(message["role"], message["content"]) for message in ArithmeticEnv.standard_fewshot_prefix())

    def one(x: int, y: int) -> Demonstration:
        turns = (*before, Turn("user", f"What is {x} + {y}?"), Turn("assistant", str(x + y)))
        return Demonstration(Conversation(turns), (0.0,) * (len(turns) - 1) + (1.0,))

    data = [one(chance.randint(0, 100), chance.randint(0, 100)) for _ in range(options.shown)]

    async def make(plan: Plan, clients: Clients, renderer: Renderer) -> Sft:
        return await Sft.of(plan, clients, renderer)

    ran = run(running, plan, make, data)
    assert ran.position is not None
    return ran.position.states[POLICY]


def cookbooks(running: RunningServer, start: str, options: argparse.Namespace) -> Course:
    """The recipe as users run it."""
    with tempfile.TemporaryDirectory() as scratch:
        settings = {
            "env": "arithmetic",
            "model_name": FAMOUS,
            "renderer_name": RENDERER,
            "load_checkpoint_path": start,
            "lora_rank": 32,
            "learning_rate": options.rate,
            "group_size": options.group_size,
            "groups_per_batch": options.groups,
            "max_tokens": options.tokens,
            "max_steps": options.steps,
            "eval_every": 0,
            "save_every": 0,
            "log_path": f"{scratch}/log",
        }
        environment = os.environ | {
            "TINKER_BASE_URL": running.url,
            "TINKER_API_KEY": running.key,
            "HF_HOME": f"{scratch}/hub",
            "HF_ENDPOINT": f"{running.url}/hf",
        }
        words = [f"{name}={value}" for name, value in settings.items()]
        command = [sys.executable, "-m", "tinker_cookbook.recipes.math_rl.train", *words]
        subprocess.run(command, env=environment, cwd=scratch, check=True, capture_output=True)
        rows = [json.loads(text) for text in Path(scratch, "log/metrics.jsonl").read_text().splitlines()]
    return course_of([row["env/all/correct"] for row in rows if "env/all/correct" in row], options.tail)


def ours(running: RunningServer, learner: PolicyLearner, start: str, seed: int, options: argparse.Namespace) -> Course:
    """Our loop over the same environments."""
    tokenizer = AutoTokenizer.from_pretrained(folder())
    dataset = ArithmeticDataset(
        options.groups, renderers.get_renderer(RENDERER, tokenizer), options.group_size, n_batches=options.steps
    )
    plan = Plan(
        base_model=MODEL,
        start=start,
        seed=seed,
        batch_size=options.groups,
        shuffled=False,
        learning_rate=options.rate,
        schedule="constant",
        save_every=10_000,
    )

    async def make(plan: Plan, clients: Clients, renderer: Renderer) -> RewardLearner:
        client = await clients.training()
        policy = Policy(await client.save_weights_and_get_sampling_client())
        player = CookbookPlayer(Requests(policy), AnswerLimits(most_tokens=options.tokens, seed=seed))
        values = None
        if "values" in learner.needs:
            scale = Scale(score_tokens(renderer), LOWEST, HIGHEST)
            values = ValueAdapter(await clients.training(VALUE), scale, learning_rate=options.value_rate)
        return RewardLearner(plan, learner, player, policy, Evidence(client, values=values))

    ran = run(running, plan, make, builders_of(dataset))
    return course_of([record.metrics["train_part_correct"] for record in ran.records], options.tail)


if __name__ == "__main__":
    main()

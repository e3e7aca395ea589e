"""`python -m bench.learn_beside_cookbook`: our learners beside the cookbook's own loop, on its arithmetic.

The same environments, answers, rates and ranks; five runs of each side. bench/results/learn-beside-cookbook.json gets
the share of right answers over each run's last steps. To be run on an idle machine; it takes about an hour.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tinker_cookbook import renderers
from tinker_cookbook.recipes.math_rl.arithmetic_env import ArithmeticDataset
from transformers import AutoTokenizer

from bench.learn_rig import run
from bench.record import RESULTS, line, write_record
from bench.rig import MODEL, Figure, folder
from bench.rows.serve import server
from loreloop.cli.server import RunningServer
from loreloop.learn.clients import Clients
from loreloop.learn.environments.cookbook import CookbookPlayer, builders_of
from loreloop.learn.learners.cispo import Cispo
from loreloop.learn.learners.evidence import Evidence
from loreloop.learn.learners.from_rewards import VALUE, score_tokens
from loreloop.learn.learners.grpo import Grpo
from loreloop.learn.learners.policy import PolicyLearner
from loreloop.learn.learners.ppo import Ppo
from loreloop.learn.learners.reinforce import Reinforce
from loreloop.learn.learners.reinforce_loop import RewardLearner
from loreloop.learn.learners.value_adapter import Scale, ValueAdapter
from loreloop.learn.plan import Plan
from loreloop.learn.rendering import Renderer
from loreloop.learn.rollouts.drawing import AnswerLimits, Policy, Requests

FAMOUS = "Qwen/Qwen3-8B-Base"  # the recipe knows famous models only
RENDERER = "qwen3_instruct"  # the model's own chat format
LEARNERS: dict[str, PolicyLearner] = {"grpo": Grpo(), "ppo": Ppo(), "cispo": Cispo(), "reinforce": Reinforce()}
LOWEST, HIGHEST = -0.1, 1.0  # that an answer of the arithmetic recipe can earn
MOST_BELOW = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--tail", type=int, default=5, help="last steps of a run that count")
    parser.add_argument("--groups", type=int, default=8)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--rate", type=float, default=2e-4)
    parser.add_argument("--value-rate", type=float, default=1e-3)
    parser.add_argument("--only", nargs="*", default=[*LEARNERS])
    parser.add_argument("--threads", type=int, help="of the engine; by default as many as it finds best")
    options = parser.parse_args()
    shares: dict[str, list[float]] = {"cookbook": [], **{name: [] for name in options.only}}
    threads = ["--threads", str(options.threads)] if options.threads else []
    with server("--alias", f"{FAMOUS}={MODEL}", *threads) as running:
        for seed in range(1, options.seeds + 1):
            # One run of each side after another, so that all meet the machine as it is then.
            shares["cookbook"].append(cookbooks(running, options))
            for name in options.only:
                shares[name].append(ours(running, LEARNERS[name], seed, options))
            print(seed, {name: round(values[-1], 3) for name, values in shares.items()}, flush=True)
    figures = [Figure("cookbook's own loop", statistics.mean(shares["cookbook"]), "share")]
    for name in options.only:
        below = statistics.mean(shares["cookbook"]) - statistics.mean(shares[name])
        figures.append(Figure(name, statistics.mean(shares[name]), "share"))
        figures.append(Figure(f"{name}: below the cookbook's", below, "share", at_most=MOST_BELOW))
    write_record(RESULTS, "learn-beside-cookbook", __doc__ or "", figures, shares=shares, options=vars(options))
    for figure in figures:
        print(line("learn-beside-cookbook", figure), flush=True)


def cookbooks(running: RunningServer, options: argparse.Namespace) -> float:
    """The recipe as users run it."""
    with tempfile.TemporaryDirectory() as scratch:
        settings = {
            "env": "arithmetic",
            "model_name": FAMOUS,
            "renderer_name": RENDERER,
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
    return statistics.mean([row["env/all/correct"] for row in rows if "env/all/correct" in row][-options.tail :])


def ours(running: RunningServer, learner: PolicyLearner, seed: int, options: argparse.Namespace) -> float:
    """Our loop over the same environments."""
    tokenizer = AutoTokenizer.from_pretrained(folder())
    dataset = ArithmeticDataset(
        options.groups, renderers.get_renderer(RENDERER, tokenizer), options.group_size, n_batches=options.steps
    )
    plan = Plan(
        base_model=MODEL,
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
    return statistics.mean([record.metrics["train_part_correct"] for record in ran.records][-options.tail :])


if __name__ == "__main__":
    main()

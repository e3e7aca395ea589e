"""`python -m bench.learn_beside_cookbook`: our learners beside the cookbook's own loop, on its arithmetic.

The same environments, answers, rates and ranks; five runs of each side, all from the same weights: the base model knows
hardly any of these sums, and in so few steps nobody would learn anything that tells the sides apart, so it is shown
some sums first. What counts is the share of right answers to sums that no run has trained on, the same for all sides;
bench/results/learn-beside-cookbook.json also has the share over each run's steps. It takes more than an hour.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tinker
from tinker_cookbook import renderers
from tinker_cookbook.recipes.math_rl.arithmetic_env import ArithmeticDataset, ArithmeticEnv
from tinker_cookbook.rl.problem_env import ProblemGroupBuilder
from transformers import AutoTokenizer

from bench.learn_rig import run
from bench.record import RESULTS, commit, line, write_record
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
ROW, FREE = "learn-beside-cookbook", ("seeds", "go_on")
ANSWERS = 4  # to each held-out sum
FIRST_HELD_OUT = 10_000  # the batch of the recipe's endless row of sums from which on none is trained on


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--held-out", type=int, default=160, help="sums that no run is trained on")
    parser.add_argument("--groups", type=int, default=16)
    parser.add_argument("--group-size", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--rate", type=float, default=2e-4)
    parser.add_argument("--value-rate", type=float, default=1e-3)
    parser.add_argument("--only", nargs="*", default=[*LEARNERS])
    parser.add_argument("--shown", type=int, default=768, help="sums that the model is shown first")
    parser.add_argument("--shown-rate", type=float, default=3e-4)
    parser.add_argument("--go-on", action="store_true", help="add the seeds that the last call had not come to")
    parser.add_argument("--threads", type=int, help="of the engine; by default as many as it finds best")
    options = parser.parse_args()
    threads = ["--threads", str(options.threads)] if options.threads else []
    before, ran = earlier(options)
    with server("--alias", f"{FAMOUS}={MODEL}", *threads) as running:
        start = shown(running, options)
        if before is None:
            before = right(running, start, options)
        for seed in range(1 + len(ran["cookbook"]), 1 + options.seeds):
            # One run of each side after another, so that all meet the machine as it is then.
            ran["cookbook"].append(cookbooks(running, start, options))
            for name in options.only:
                ran[name].append(ours(running, LEARNERS[name], start, seed, options))
            print(seed, {name: ran[name][-1].held_out for name in ran}, flush=True)
            kept = {"ran": ran, "before": before, "options": vars(options)}
            write_record(RESULTS, ROW, __doc__ or "", figures_of(before, ran), **kept)
    for figure in figures_of(before, ran):
        print(line(ROW, figure), flush=True)


def earlier(options: argparse.Namespace) -> tuple[float | None, dict[str, list[Course]]]:
    """What an earlier call with `--go-on` left to be added to: the share before, and the runs of each side."""
    sides = ("cookbook", *options.only)
    if not options.go_on:
        return None, {name: [] for name in sides}
    record = json.loads((RESULTS / f"{ROW}.json").read_text())
    changed = [name for name, value in record["options"].items() if name not in FREE and vars(options)[name] != value]
    if changed or record["commit"] != commit():
        raise SystemExit(f"The runs in {ROW}.json had another commit or other options: {', '.join(changed)}.")
    return record["before"], {name: [Course(**one) for one in record["ran"][name]] for name in sides}


def figures_of(before: float, ran: dict[str, list[Course]]) -> list[Figure]:
    means = {name: statistics.mean(one.held_out for one in courses) for name, courses in ran.items()}
    figures = [
        Figure("seeds", len(ran["cookbook"]), "runs"),
        Figure("all sides, before", before, "share"),
        # Where nothing is learned, no side can fall behind, and the comparison says nothing.
        Figure("cookbook's own loop, after", means["cookbook"], "share", at_least=before + 2 * MOST_BELOW),
    ]
    for name in (name for name in ran if name != "cookbook"):
        figures.append(Figure(f"{name}, after", means[name], "share"))
        below = means["cookbook"] - means[name]
        figures.append(Figure(f"{name}: below the cookbook's", below, "share", at_most=MOST_BELOW))
    return figures


@dataclass(frozen=True)
class Course:
    """The shares of right answers: to the sums of each step, and in the end to sums that no run has trained on."""

    steps: tuple[float, ...]
    held_out: float


def right(running: RunningServer, state: str, options: argparse.Namespace) -> float:
    """How often saved weights answer held-out sums rightly, when they are sampled as in training."""
    dataset = dataset_of(options, FIRST_HELD_OUT, ANSWERS)
    # Batches have sums in common: each is drawn by itself from the 101² that there are.
    seen = {*shown_pairs(options)} | {
        pair_of(one) for index in range(options.steps) for one in dataset.get_batch(index)
    }
    rest = (one for index in itertools.count(FIRST_HELD_OUT) for one in dataset.get_batch(index))
    builders = [*itertools.islice((one for one in rest if pair_of(one) not in seen), options.held_out)]

    async def ask() -> float:
        with tinker.ServiceClient(base_url=running.url, api_key=running.key) as service:
            client = await service.create_training_client_from_state(state)
            policy = Policy(await client.save_weights_and_get_sampling_client())
            player = CookbookPlayer(Requests(policy), AnswerLimits(most_tokens=options.tokens, seed=0))
            groups = await asyncio.gather(*(player.group(builder, i) for i, builder in enumerate(builders)))
        return statistics.mean(rollout.parts["correct"] for group in groups for rollout in group.rollouts)

    return asyncio.run(ask())


def pair_of(builder: ProblemGroupBuilder) -> tuple[int, int]:
    """The two numbers whose sum is asked for."""
    x, y = builder.env_thunk.args  # type: ignore[attr-defined]  # a partial of the environment
    return int(x), int(y)


def shown_pairs(options: argparse.Namespace) -> list[tuple[int, int]]:
    """The sums that the model is shown first."""
    chance = random.Random(0)
    return [(chance.randint(0, 100), chance.randint(0, 100)) for _ in range(options.shown)]


def dataset_of(options: argparse.Namespace, n_batches: int, group_size: int) -> ArithmeticDataset:
    renderer = renderers.get_renderer(RENDERER, AutoTokenizer.from_pretrained(folder()))
    return ArithmeticDataset(options.groups, renderer, group_size, n_batches=n_batches)


def shown(running: RunningServer, options: argparse.Namespace) -> str:
    """A checkpoint of the model when it has seen some sums with their answers, in the environment's own words."""
    plan = Plan(
        base_model=MODEL,
        seed=0,
        batch_size=32,
        learning_rate=options.shown_rate,
        save_every=max(1, options.shown // 32),
    )
    before = tuple(Turn(message["role"], message["content"]) for message in ArithmeticEnv.standard_fewshot_prefix())

    def one(x: int, y: int) -> Demonstration:
        turns = (*before, Turn("user", f"What is {x} + {y}?"), Turn("assistant", str(x + y)))
        return Demonstration(Conversation(turns), (0.0,) * (len(turns) - 1) + (1.0,))

    data = [one(x, y) for x, y in shown_pairs(options)]

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
            "save_every": 0,  # but for the end
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
        saved = [json.loads(text) for text in Path(scratch, "log/checkpoints.jsonl").read_text().splitlines()]
    steps = tuple(row["env/all/correct"] for row in rows if "env/all/correct" in row)
    return Course(steps, right(running, saved[-1]["state_path"], options))


def ours(running: RunningServer, learner: PolicyLearner, start: str, seed: int, options: argparse.Namespace) -> Course:
    """Our loop over the same environments."""
    plan = Plan(
        base_model=MODEL,
        start=start,
        seed=seed,
        batch_size=options.groups,
        shuffled=False,
        learning_rate=options.rate,
        schedule="constant",
        save_every=options.steps,
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

    ran = run(running, plan, make, builders_of(dataset_of(options, options.steps, options.group_size)))
    assert ran.position is not None
    steps = tuple(record.metrics["train_part_correct"] for record in ran.records)
    return Course(steps, right(running, ran.position.states[POLICY], options))


if __name__ == "__main__":
    main()

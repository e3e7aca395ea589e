"""A candidate out of a cycle's files: each method of `learn/` in its turn, from where the one before has ended.

Every run keeps its position in the cycle's folder, so that a loop that died goes on behind its last saved step. Knows
neither the feeds nor the gate.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import tinker

from loreloop.learn.auto import Asked, chosen
from loreloop.learn.clients import POLICY, Clients, correction_needed, forgotten, window_of
from loreloop.learn.corrections import Correction
from loreloop.learn.environments.environment import OneAnswer
from loreloop.learn.files import read_file
from loreloop.learn.learners.from_rewards import Sampling, Ways, reward_learner
from loreloop.learn.learners.grpo import Grpo
from loreloop.learn.learners.kl import KlBudget, KlPenalty
from loreloop.learn.learners.reinforce_loop import Bounds
from loreloop.learn.loop.config import Training
from loreloop.learn.loop.cycle_files import GENERAL
from loreloop.learn.loop.rehearsing import rehearsed_of, train_beside
from loreloop.learn.loop.state import RunFolder, written
from loreloop.learn.loop.watching import Look, StoppedByGuards, TrainingWatch
from loreloop.learn.methods import METHODS, Keeping, Order, seeing, train
from loreloop.learn.plan import Plan
from loreloop.learn.rendering import Renderer
from loreloop.learn.rewards.reward import Reward
from loreloop.learn.rollouts.collect import Pace
from loreloop.learn.rollouts.drawing import AnswerLimits
from loreloop.learn.runner import Position, Run
from loreloop.learn.settings import SETTINGS
from loreloop.protocol.errors import BadRequest, ServerError

BATCH_OF_TASKS = 8  # prompts of a GRPO step
# Corrections are learned where each is read 12 times in batches of 8, and of few so often as makes 36 steps:
# `python -m bench.loop_cycle`; the rules for files of examples stop too early. Of many, a cycle learns 96, since it has
# five minutes: 144 steps of 864 tokens are about three with the default model on two cores. What is more than that is
# left to the next cycle, but for one that begins where the loop began, which learns everything at once.
LINES_READ, BATCH_OF_LINES, FEWEST_EPOCHS, MOST_EPOCHS, FEWEST_READ = 1152, 8, 3, 12, 288
RATE_SHARE = 0.5  # of the rate for files: what is not corrected moves less, and so many steps do with it


@dataclass(frozen=True)
class Shop:
    """What training needs of its surroundings. `texts` is the base model's folder of tokenizer and template; `reward`
    is what GRPO learns from; `look` is what guards a training, if anything does."""

    service: tinker.ServiceClient
    renderer: Renderer
    texts: Path
    base_model: str
    training: Training
    seed: int = 0
    reward: Reward | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)  # of every plan, whatever the rules say
    look: Look | None = None


@dataclass(frozen=True)
class Made:
    """Weights as they are sampled (`path`) and as training goes on from them (`state`); `alarm` says why the guards
    have stopped the training behind them, "" where it came to its end."""

    path: str
    state: str
    alarm: str = ""


async def trained(shop: Shop, folder: Path, start: str | None, name: str) -> Made | None:
    """Trains by every method that has a file in the folder; None where none has. Where the guards stop it, what was
    good last; StoppedByGuards where nothing was."""
    made: Made | None = None
    for method in shop.training.methods:
        file = folder / f"{method}.jsonl"
        if file.exists():
            found = await _run(shop, method, file, made.state if made else start, f"{name}-{method}")
            # What a method before has made was looked at when it was done.
            made = replace(made, alarm=found.alarm) if made and not found.path else found
        if made is not None and made.alarm:
            break
    if made is not None and not made.path:
        raise StoppedByGuards(made.alarm)
    return made


async def _run(shop: Shop, method: str, file: Path, start: str | None, name: str) -> Made:
    """One method's run. Where the guards have stopped it, its last good weights with the alarm; paths are "" where it
    has none."""
    examples = await fitting(shop, method, read_file(file, METHODS[method].read))
    if not examples:
        raise BadRequest(f"No line of {file.name} fits into the model's window, or its template takes none.")
    rehearsed = rehearsed_of(file.with_name(GENERAL)) if method == "sft" else []
    plan = plan_of(shop, method, len(examples), start, name)
    if method == "sft" and shop.training.epochs is None:
        plan, examples = as_one_epoch(plan, examples)
    kept = await _run_of(shop, plan, len(examples), file.with_suffix(""))
    watch = TrainingWatch(kept.path, name, shop.look) if shop.look else None
    keeping = Keeping(kept, kept.tell)
    if watch is not None:
        keeping = replace(keeping, wish=watch.wish, look=watch.see)
    position = await kept.load()
    if watch is not None and position is not None and position.step > watch.seen.step and keeping.wish() == "go":
        # A death between a saved state and the look at it: nobody comes by this step again.
        clients = Clients(shop.service, plan, position.states)
        await clients.training()
        await watch.see(clients, plan.moment(position.step - 1, len(examples)))
    if (position is None or not position.finished) and keeping.wish() == "go":
        if method == "grpo":
            await _from_reward(shop, plan, examples, keeping)
        else:
            settings = SETTINGS[method]()
            order = Order(method=method, plan=plan, settings=settings, renderer=shop.renderer, examples=examples)
            if rehearsed:
                await train_beside(order, rehearsed, shop.service, keeping)
            else:
                await train(order, shop.service, keeping)
        position = await kept.load()
    if watch is not None and watch.seen.alarm:
        return Made(watch.seen.path, watch.seen.state, watch.seen.alarm)
    made = _made(position, name)
    # The weights of epochs before the last one are in nobody's way to anything.
    await forgotten(shop.service, [one.path for one in position.checkpoints[:-1]] if position else ())
    return made


async def _run_of(shop: Shop, plan: Plan, n: int, folder: Path) -> RunFolder:
    """The folder of a run by this plan over so many examples. A position counts steps of its own plan: what has begun
    by another one, as where loop.toml was changed meanwhile, begins anew."""
    mark, kept, file = msgspec.json.encode({"plan": plan, "examples": n}), RunFolder(folder), folder / "plan.json"
    known = file.read_bytes() if file.exists() else None
    if known == mark:
        return kept
    # A version that noted no plan may have left a position; nothing says that it is of another one.
    if known is not None:
        if (position := await kept.load()) is not None:
            await forgotten(shop.service, [*position.states.values(), *(one.path for one in position.checkpoints)])
        # As a whole: of a folder that is half deleted, a position might stay without its plan.
        old = folder.with_name(f"{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
        shutil.rmtree(old)
        kept = RunFolder(folder)
    written(file, mark)
    return kept


async def fitting(shop: Shop, method: str, examples: Sequence[Any]) -> list[Any]:
    """The examples that the model can learn from: people write what they like, and one answer that is too long for the
    window must not keep the others from being learned."""
    if not examples:
        return []
    window = await window_of(shop.service, shop.base_model)
    # A prompt needs room for its answer.
    room = shop.training.answer_tokens if method == "grpo" else 1
    plan = plan_of(shop, method, len(examples), None, "fitting")
    order = Order(method=method, plan=plan, settings=SETTINGS[method](), renderer=shop.renderer, examples=examples)
    renderer = await seeing(order, shop.service)

    def fits(example: Any) -> bool:
        try:
            data = METHODS[method].data(renderer, example)
        except BadRequest:
            return False
        return window is None or all(datum.model_input.length + room <= window for datum in data)

    return [example for example in examples if fits(example)]


def plan_of(shop: Shop, method: str, n: int, start: str | None, name: str) -> Plan:
    """The plan of one method's run over `n` examples."""
    told = shop.training
    epochs, batch_size = told.epochs, told.batch_size
    if method == "sft" and epochs is None:
        batch_size = batch_size or BATCH_OF_LINES
        epochs = min(MOST_EPOCHS, max(FEWEST_EPOCHS, math.ceil(LINES_READ / n)))
        epochs = max(epochs, math.ceil(FEWEST_READ / n))
    is_by_rule = method == "sft" and told.epochs is None
    decided = chosen(
        method, n, shop.texts, Asked(epochs, batch_size, told.learning_rate, RATE_SHARE if is_by_rule else 1.0)
    )
    fields: dict[str, Any] = {
        "base_model": shop.base_model,
        "name": name,
        "start": start,
        "rank": told.rank,
        "seed": shop.seed,
        "epochs": decided.epochs if method != "grpo" else told.epochs or 1,
        "batch_size": decided.batch_size if method != "grpo" else told.batch_size or BATCH_OF_TASKS,
        "learning_rate": decided.learning_rate,
        # A cycle is short; what a death may cost is a few steps.
        "save_every": 10,
    }
    return Plan(**(fields | dict(shop.fixed)))


def most_corrections(told: Training) -> int | None:
    """How many corrections a cycle learns, with what is imitated beside them as often as can be; None where none is
    imitated, or loop.toml itself says how often."""
    if "sft" not in told.methods or told.epochs is not None:
        return None
    # A method runs where it has so many lines, however many are left over.
    return max(1, int(LINES_READ // MOST_EPOCHS / (1 + told.liked)), told.least_examples)


def as_one_epoch(plan: Plan, examples: Sequence[Any]) -> tuple[Plan, list[Any]]:
    """The same reading as a single epoch: all examples again and again, each time in an order of its own. Where an
    epoch ends a batch does, and weights are saved and looked at by guards: of a dozen lines after every other step."""
    whole = msgspec.structs.replace(plan, batch_size=len(examples))
    lines = [line for epoch in range(plan.epochs) for line in whole.batch(epoch, examples)]
    return msgspec.structs.replace(plan, epochs=1, shuffled=False), lines


async def _from_reward(shop: Shop, plan: Plan, tasks: list[Any], keeping: Keeping) -> None:
    """Fresh answers to recorded prompts, by the reward that the loop has; pulled to where the cycle began."""
    told = shop.training
    if shop.reward is None:
        raise ServerError("GRPO was begun without a reward, which loop.toml should not have let pass.")
    reward = shop.reward
    position = await keeping.progress.load()
    clients = Clients(shop.service, plan, position.states if position else None)
    budget = KlBudget(told.kl_budget) if told.kl_budget and told.kl else None
    correction = Correction(await correction_needed(shop.service, shop.base_model))
    learner_of = Grpo(normalisation="tokens", kl=KlPenalty(told.kl), correction=correction)
    ways = Ways(learner_of, bounds=Bounds(None, budget))
    limits = AnswerLimits(most_tokens=told.answer_tokens, temperature=told.temperature)
    sampling = Sampling(group_size=told.group_size, limits=limits, pace=Pace(staleness=told.staleness))
    learner = await reward_learner(plan, clients, shop.renderer, lambda: OneAnswer(reward), ways, sampling)
    run = Run(plan=plan, clients=clients, learner=learner, progress=keeping.progress, tell=keeping.tell)
    run.wish = keeping.wish
    if keeping.look is not None:
        run.look = partial(keeping.look, clients)
    try:
        await run.over(tasks)
    finally:
        await learner.close()


def _made(position: Position | None, name: str) -> Made:
    if position is None or not position.finished or POLICY not in position.states:
        raise ServerError(f"The run {name} ended without weights; look at its metrics.jsonl.")
    return Made(position.checkpoints[-1].path, position.states[POLICY])


def for_person(shop: Shop, epochs: int, learning_rate: float | None) -> Shop:
    """The same for a single person's corrections."""
    rate = learning_rate or shop.training.learning_rate
    return replace(
        shop, training=msgspec.structs.replace(shop.training, methods=("sft",), epochs=epochs, learning_rate=rate)
    )

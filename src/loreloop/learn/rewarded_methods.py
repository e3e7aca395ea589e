"""Learners from rewards and from hindsight, made of the settings that a command or a job has for them.

`methods.py` has their rows. Knows how settings and parts fit together, and none of the formulas.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec
import tinker

from loreloop.learn.advantages import Overlong
from loreloop.learn.clients import Clients, correction_needed
from loreloop.learn.corrections import Correction
from loreloop.learn.environments.environment import Environment
from loreloop.learn.examples import Task, Told
from loreloop.learn.learners.cispo import Cispo
from loreloop.learn.learners.distill import Distill
from loreloop.learn.learners.from_rewards import Sampling, Ways, looking_of, reward_learner
from loreloop.learn.learners.grpo import Grpo
from loreloop.learn.learners.hindsight import Hindsight
from loreloop.learn.learners.hindsight_loop import HindsightLearner, pair_of
from loreloop.learn.learners.kl import KlBudget, KlPenalty
from loreloop.learn.learners.policy import PolicyLearner
from loreloop.learn.learners.ppo import Ppo
from loreloop.learn.learners.redrawing import Redrawing
from loreloop.learn.learners.reinforce import Reinforce
from loreloop.learn.learners.reinforce_loop import Bounds, RewardLearner
from loreloop.learn.pictures import urls_of
from loreloop.learn.played import Tools, environments_of, reward_of
from loreloop.learn.rendering import Renderer
from loreloop.learn.rewards.graders.grader import Means
from loreloop.learn.rewards.sandbox import CodeSandbox
from loreloop.learn.rewards.watched import Watched
from loreloop.learn.rollouts.collect import Pace
from loreloop.learn.rollouts.dialogue import Dialogue
from loreloop.learn.rollouts.drawing import AnswerLimits
from loreloop.learn.settings import (
    CispoSettings,
    CorrectedSettings,
    DistillSettings,
    GrpoSettings,
    HindsightSettings,
    PpoSettings,
    ReinforceSettings,
    RewardSettings,
)
from loreloop.protocol.errors import BadRequest

if TYPE_CHECKING:
    from loreloop.learn.methods import Order


async def from_rewards(order: Order, clients: Clients) -> RewardLearner:
    """The learner of an order for GRPO, PPO, CISPO, REINFORCE or distillation. BadRequest where its settings do not fit
    together, its grader is none, or its environment is not there."""
    assert isinstance(order.settings, RewardSettings)
    settings = await settled(order.settings, clients)
    given = order.means or Means()
    means = given if given.sandbox else replace(given, sandbox=CodeSandbox())
    names = {id(task.item): f"Held-out example {number}" for number, task in enumerate(order.held_out, 1)}
    names |= {id(task.item): f"Example {number}" for number, task in enumerate(order.examples, 1)}
    reward = Watched(reward_of(settings, means), names)
    learner = await reward_learner(
        order.plan,
        clients,
        order.renderer,
        environments_of(settings, reward, Tools(means, order.tools), order.plan.seed),
        ways_of(settings),
        sampling_of(settings),
    )
    learner.watched = reward
    if isinstance(settings, GrpoSettings):
        learner.redrawing = Redrawing(settings.resample, order.examples, order.plan.seed)
    if means.sandbox is not None and given.sandbox is None:
        # Made for this run alone, so that it ends with it.
        learner.closed_too.append(means.sandbox.close)
    return learner


@dataclass
class Beginning:
    """With what the episodes of an order begin: tasks with the tools and images that their environment adds."""

    make: Callable[[], Environment]
    words: Dialogue
    sandbox: CodeSandbox | None  # made for these looks alone
    n_drawn: int | None = None  # tokens of the first task whose images its environment has drawn

    async def length(self, task: Task) -> int:
        """Tokens of a task's first prompt. Images that an environment draws are counted for one task alone: to ask the
        server about each would take as long as to answer it."""
        environment = self.make()
        try:
            conversation = await environment.reset(task)
            drawn = set(urls_of([conversation])) - set(urls_of([task.prompt]))
            if drawn and self.n_drawn is not None:
                return self.n_drawn
            n_tokens = (await self.words.prompt(conversation)).length
            self.n_drawn = n_tokens if drawn else self.n_drawn
            return n_tokens
        finally:
            await environment.close()

    async def close(self) -> None:
        """Ends what was made for it."""
        if self.sandbox is not None:
            await self.sandbox.close()


def beginning_of(order: Order, service: tinker.ServiceClient) -> Beginning | None:
    """What looks at an order's tasks; None where it has none. BadRequest where the environment is not there."""
    settings = order.settings
    if not isinstance(settings, RewardSettings):
        return None
    means, own = order.means or Means(), None
    if means.sandbox is None:
        own = CodeSandbox()
        means = replace(means, sandbox=own)
    reward = reward_of(settings, means)
    make = environments_of(settings, reward, Tools(means, order.tools), order.plan.seed)
    looking = looking_of(Clients(service, order.plan), order.renderer)
    return Beginning(make, Dialogue(order.renderer, looking), own)


async def from_hindsight(order: Order, clients: Clients) -> HindsightLearner:
    """The learner of an order for hindsight."""
    settings = order.settings
    assert isinstance(settings, HindsightSettings)
    learner = Hindsight(most=settings.most, least=settings.least)
    return await HindsightLearner.of(order.plan, clients, order.renderer, learner)


def shown_of(renderer: Renderer, one: Told) -> list[tinker.Datum]:
    """Both rows of an answer to learn from in hindsight: the one that tells what came after is the longer."""
    pair = pair_of(renderer, one)
    return [tinker.Datum(model_input=trace.model_input) for trace in (pair.plain, pair.shown)]


def asked_of(renderer: Renderer, task: Task) -> list[tinker.Datum]:
    """A task's prompt, as data whose length can be looked at."""
    return [tinker.Datum(model_input=renderer.prompt(task.prompt))]


def sampling_of(settings: RewardSettings) -> Sampling:
    """How answers are sampled."""
    limits = AnswerLimits(
        most_tokens=settings.answer_tokens,
        most_episode_tokens=settings.episode_tokens,
        most_turns=settings.turns,
        temperature=settings.temperature,
        piece=settings.piece,
    )
    pace = Pace(staleness=settings.staleness, overtaking=settings.overtaking)
    return Sampling(
        group_size=settings.group_size,
        limits=limits,
        pace=pace,
        most_requests=settings.at_once,
        eval_samples=settings.eval_samples,
    )


def ways_of(settings: RewardSettings) -> Ways:
    """What is learned of the answers, and how."""
    if settings.kl_budget is None and settings.kl_most is not None:
        raise BadRequest("--kl-most ends a run whose divergence is measured; give --kl-budget as well.")
    if settings.kl_budget is not None and settings.kl_most is not None and settings.kl_most < settings.kl_budget:
        raise BadRequest("--kl-most is below --kl-budget; the run would pause before the budget is used.")
    if settings.kl_budget is not None and settings.kl_most is None and not settings.kl:
        raise BadRequest("--kl-budget steers the strength of --kl, which is 0 and would stay so; give --kl 0.01, say.")
    budget = None if settings.kl_budget is None else KlBudget(settings.kl_budget, most=settings.kl_most)
    bounds, made = Bounds(settings.budget_tokens, budget), policy_learner(settings)
    ways = Ways(learner=made, bounds=bounds, reference=settings.kl_reference)
    match settings:
        case PpoSettings():
            if not settings.low < settings.high:
                raise BadRequest("--low is the least that an episode can earn, and must be below --high.")
            ways = replace(ways, low=settings.low, high=settings.high, value_rate=settings.value_rate)
            return replace(ways, passes=settings.passes)
        case DistillSettings():
            if settings.teacher is None:
                raise BadRequest("Nobody teaches; name a model or a tinker:// path with --teacher.")
            if settings.kl:
                raise BadRequest("Distillation pulls to its teacher and to nothing else; leave --kl out.")
            return replace(ways, teacher=settings.teacher)
        case GrpoSettings() | CispoSettings():
            return replace(ways, passes=settings.passes)
    return ways


async def settled(settings: RewardSettings, clients: Clients) -> RewardSettings:
    """The settings with a correction, where it was left to us."""
    if not isinstance(settings, CorrectedSettings) or settings.correction != "auto":
        return settings
    rule = await correction_needed(clients.service, clients.plan.base_model)
    return msgspec.structs.replace(settings, correction=rule)


def policy_learner(settings: RewardSettings) -> PolicyLearner:
    """The page that the settings are for."""
    kl = KlPenalty(settings.kl, settings.kl_form)
    if isinstance(settings, DistillSettings):
        return Distill(strength=settings.strength, reward=settings.reward_weight, normalisation=settings.normalisation)
    assert isinstance(settings, CorrectedSettings)
    correction = _correction(settings)
    match settings:
        case GrpoSettings():
            buffer = settings.overlong_buffer
            if buffer > settings.answer_tokens:
                raise BadRequest("--overlong-buffer is a part of --answer-tokens, and cannot be larger.")
            return Grpo(
                clip_low=settings.clip_low,
                clip_high=settings.clip_high,
                scaled=settings.scaled,
                skip_flat=settings.skip_flat,
                normalisation=settings.normalisation,
                overlong=Overlong(settings.answer_tokens, buffer) if buffer else None,
                correction=correction,
                kl=kl,
            )
        case PpoSettings():
            return Ppo(
                clip=settings.clip,
                gamma=settings.gamma,
                lam=settings.lam,
                normalisation=settings.normalisation,
                correction=correction,
                kl=kl,
            )
        case CispoSettings():
            return Cispo(
                low=settings.low,
                high=settings.high,
                scaled=settings.scaled,
                normalisation=settings.normalisation,
                correction=correction,
                kl=kl,
            )
    assert isinstance(settings, ReinforceSettings)
    return Reinforce(correction=correction, scaled=settings.scaled, normalisation=settings.normalisation, kl=kl)


def _correction(settings: CorrectedSettings) -> Correction:
    # Whoever asks nobody what draws has samples of our own engines.
    rule = "none" if settings.correction == "auto" else settings.correction
    try:
        return Correction(rule, settings.correction_low, settings.correction_high)
    except ValueError:
        raise BadRequest(
            "--correction-low must be below --correction-high, and each fit the other bound of its rule."
        ) from None

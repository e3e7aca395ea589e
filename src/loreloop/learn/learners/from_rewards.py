"""Puts a learner from rewards together: clients, player, evidence, and the loop's step around them.

Commands and jobs call this; a program of one's own may put the same parts together differently.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import tinker

from loreloop.learn.clients import Clients, window_of
from loreloop.learn.environments.environment import Environment
from loreloop.learn.learners.evidence import Evidence, Scorer
from loreloop.learn.learners.policy import Need, PolicyLearner
from loreloop.learn.learners.reinforce_loop import Bounds, RewardLearner
from loreloop.learn.learners.value_adapter import Scale, ValueAdapter
from loreloop.learn.pictures import Looking
from loreloop.learn.plan import Plan
from loreloop.learn.rendering import Renderer
from loreloop.learn.rollouts.collect import Pace
from loreloop.learn.rollouts.dialogue import Dialogue
from loreloop.learn.rollouts.drawing import AnswerLimits, Policy, Requests
from loreloop.learn.rollouts.episodes import Player

VALUE = "value"  # the client of the value adapter
SCORE_WORDS = "0123456789"  # what stands for the scores of a value: digits are tokens of their own almost everywhere


@dataclass(frozen=True)
class Sampling:
    """`group_size` answers to each task, `eval_samples` to each that is held out; no more than `most_requests` answers,
    of `most_tokens` with their prompts, are being sampled at once."""

    group_size: int = 8
    limits: AnswerLimits = field(default_factory=AnswerLimits)
    pace: Pace = field(default_factory=Pace)
    most_requests: int = 512
    most_tokens: int | None = None
    eval_samples: int = 1


@dataclass(frozen=True)
class Ways:
    """What is learned how: `teacher` and `reference` are base models or tinker:// paths, for learners that ask them;
    the reference is where the run began if it is not named. `low` and `high` are the least and the most that an episode
    can earn, for a value adapter's scale."""

    learner: PolicyLearner
    passes: int = 1
    bounds: Bounds = field(default_factory=Bounds)
    teacher: str | None = None
    reference: str | None = None
    low: float = 0.0
    high: float = 1.0
    value_rate: float = 1e-4


async def reward_learner(
    plan: Plan, clients: Clients, renderer: Renderer, make: Callable[[], Environment], ways: Ways, sampling: Sampling
) -> RewardLearner:
    """A learner for the runner. `make` makes an environment for each episode."""
    client = await clients.training()
    policy = Policy(await client.save_weights_and_get_sampling_client())
    limits = replace(
        sampling.limits, window=sampling.limits.window or await window_of(clients.service, plan.base_model)
    )
    # A run that names one seed means all of its random numbers, the sampler's too.
    limits = limits if limits.seed is not None else replace(limits, seed=plan.seed)
    player = Player(
        make=make,
        words=Dialogue(renderer, looking_of(clients, renderer)),
        requests=Requests(policy, most=sampling.most_requests, most_tokens=sampling.most_tokens),
        limits=limits,
        group_size=sampling.group_size,
    )
    return RewardLearner(
        plan=plan,
        learner=ways.learner,
        player=player,
        policy=policy,
        evidence=await _evidence(client, clients, renderer, ways),
        pace=sampling.pace,
        bounds=ways.bounds,
        passes=ways.passes,
        eval_samples=sampling.eval_samples,
    )


def looking_of(clients: Clients, renderer: Renderer) -> Looking | None:
    """What counts the images of environments; None for a model that reads text only."""
    if renderer.sight is None:
        return None
    asked: list[tinker.SamplingClient] = []

    async def client() -> tinker.SamplingClient:
        # Of the base model, since images have as many tokens whatever was learned; made once, and only if need be.
        if not asked:
            asked.append(await _sampler(clients.service, clients.plan.base_model))
        return asked[0]

    return Looking(client, renderer.stop[0], renderer.sight.chunks)


async def _evidence(client: tinker.TrainingClient, clients: Clients, renderer: Renderer, ways: Ways) -> Evidence:
    needs: set[Need] = set(ways.learner.needs)
    values = None
    if "values" in needs:
        scale = Scale(score_tokens(renderer), ways.low, ways.high)
        # An adapter of its own: values learned into the policy's weights would change what it says.
        values = ValueAdapter(await clients.training(VALUE), scale, learning_rate=ways.value_rate)
    return Evidence(
        client=client,
        reference=await _reference(clients, ways) if "reference" in needs or ways.bounds.kl else None,
        teacher=await _sampler(clients.service, ways.teacher) if ways.teacher else None,
        values=values,
    )


async def _reference(clients: Clients, ways: Ways) -> Scorer:
    return await clients.reference() if ways.reference is None else await _sampler(clients.service, ways.reference)


async def _sampler(service: tinker.ServiceClient, model: str) -> tinker.SamplingClient:
    if model.startswith("tinker://"):
        return await service.create_sampling_client(model_path=model)
    return await service.create_sampling_client(base_model=model)


def score_tokens(renderer: Renderer) -> tuple[int, ...]:
    """The tokens of the ten digits; where a tokenizer writes one in several tokens, its last one. Some ids in their
    place where two of these are the same."""
    tokens = tuple(renderer.tokenizer.encode(word)[-1] for word in SCORE_WORDS)
    return tokens if len(set(tokens)) == len(tokens) else tuple(range(10, 10 + len(SCORE_WORDS)))

"""The step that all learners from rewards share: sample, reward, datums, pass, optimizer step, new weights to sample.

It is a `Learner` of `learn/runner.py`, which takes it through its steps, saves its clients and asks it for evaluations.
With a staleness above 0 the runner tells of tasks that many steps ahead, and they are sampled beside learning.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import tinker

from loreloop.learn.breakdowns import NothingSampled, StepUngraded
from loreloop.learn.clients import adam_of
from loreloop.learn.learners import measures
from loreloop.learn.learners.evidence import Asked, Evidence
from loreloop.learn.learners.kl import KlBudget, divergence, penalty_of
from loreloop.learn.learners.policy import PolicyLearner, Scored
from loreloop.learn.learners.ppo import Ppo
from loreloop.learn.learners.redrawing import Batch, Redrawing
from loreloop.learn.learners.value_adapter import ValueStep
from loreloop.learn.plan import Moment, Plan
from loreloop.learn.rewards.watched import Watched
from loreloop.learn.rollouts.collect import Collector, Pace, Played
from loreloop.learn.rollouts.drawing import Policy
from loreloop.learn.rollouts.episodes import Plays
from loreloop.learn.runner import TOKENS, Metrics


@dataclass(frozen=True)
class Bounds:
    """What ends a run early: `most_tokens` sampled in all, or a spent budget of divergence from the reference."""

    most_tokens: int | None = None
    kl: KlBudget | None = None


@dataclass
class Standing:
    """What a run must remember beside its weights: tokens sampled, the strength of the penalty as it is now, the
    divergence that was measured last, without which a run that paused for it would take another step each time, and how
    many rewards its grader has given."""

    n_tokens: int = 0
    kl_strength: float | None = None
    divergence: float = 0.0
    n_given: int = 0


@dataclass(frozen=True)
class _Step:
    """What one step had to learn from; `number` counts from 1."""

    number: int
    played: Sequence[Played]
    scored: Sequence[Scored]
    data: list[tinker.Datum]


@dataclass
class _HandedIn:
    """What a step has sent to the server, in its order."""

    passes: list[tinker.APIFuture[tinker.ForwardBackwardOutput]] = field(default_factory=list)
    steps: list[tinker.APIFuture[tinker.OptimStepResponse]] = field(default_factory=list)
    value_step: ValueStep | None = None


@dataclass
class RewardLearner:
    """`player` plays the tasks with what `policy` holds, and `learner` says what is learned of that. `passes` go over
    the same rollouts several times, which only the learners with a clipped ratio bear. Held-out tasks are answered
    `eval_samples` times. The reward that is `watched` is
    asked with each step whether the run has any sense still."""

    plan: Plan
    learner: PolicyLearner
    player: Plays
    policy: Policy
    evidence: Evidence
    pace: Pace = field(default_factory=Pace)
    bounds: Bounds = field(default_factory=Bounds)
    passes: int = 1
    eval_samples: int = 1
    redrawing: Redrawing = field(default_factory=Redrawing)
    watched: Watched | None = None
    standing: Standing = field(default_factory=Standing)
    closed_too: list[Callable[[], Awaitable[None]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.collector = Collector(play=self.player.group, pace=self.pace, revision=lambda: self.policy.revision)
        self.ahead = self.pace.staleness
        self.begun = False

    @property
    def client(self) -> tinker.TrainingClient:
        """The client whose weights learn."""
        return self.evidence.client

    def prepare(self, batch: Sequence[Any], at: Moment) -> None:
        """The tasks of a step begin to be played as soon as its staleness allows."""
        if not self.begun:
            # A run that goes on counts its revisions, and with them its random numbers, from where it is.
            self.begun, self.policy.revision = True, at.step
        self.collector.add(at.step, batch, first=at.step * self.plan.batch_size)

    async def step(self, batch: Sequence[Any], at: Moment) -> Awaitable[Metrics]:
        """One step, of which everything is handed in when it returns, and the next revision samples."""
        if at.step not in self.collector.sizes:
            self.prepare(batch, at)
        batch_of = await self._batch(at)
        played = batch_of.kept
        asked = await self._asked(played)
        scored = asked.scored
        found = measures.of_rollouts(batch_of.all, self.policy.revision) | self._follow_budget(scored)
        if self.redrawing.most:
            found["train_redrawn"] = float(len(batch_of.left_out))
        self.standing.n_tokens += sum(rollout.n_sampled for one in batch_of.all for rollout in one.group.rollouts)
        data = self._current().datums(_by_group(scored))
        handed_in = self._hand_in(data, asked, at)
        if data:
            self.policy.renew(await self.client.save_weights_and_get_sampling_client())
        else:
            # Nothing was to be learned, so that the weights are what they were, at the cost of a step.
            self.policy.renew(self.policy.sampler)
        if self.watched is not None:
            self.watched.check()
        return self._metrics(_Step(at.step + 1, played, scored, data), found, handed_in)

    async def _batch(self, at: Moment) -> Batch:
        """What a step has to learn from, as it was played."""
        played = await self.collector.take(at.step)
        _check_sampled(played, at.step + 1)
        most = self.bounds.most_tokens
        left = None if most is None else most - self.standing.n_tokens
        return await self.redrawing.filled(played, at.step, self.player.group, self.pace, left)

    async def _asked(self, played: Sequence[Played]) -> Asked:
        rollouts = [rollout for one in played for rollout in one.group.graded]
        targets = self.learner.value_targets if isinstance(self.learner, Ppo) else None
        return await self.evidence.scored(rollouts, self._needs(), targets)

    def _needs(self) -> frozenset[Any]:
        # A budget measures the divergence even where the penalty's strength is 0.
        return self._current().needs | ({"reference"} if self.bounds.kl else frozenset())

    def _current(self) -> PolicyLearner:
        """The learner with the penalty as strong as it is now."""
        strength, kl = self.standing.kl_strength, penalty_of(self.learner)
        if strength is None or kl is None:
            return self.learner
        return replace(self.learner, kl=replace(kl, strength=strength))  # type: ignore[type-var]

    def _follow_budget(self, scored: Sequence[Scored]) -> Metrics:
        if not any(one.reference is not None for one in scored):
            return {}
        standing, kl = self.standing, penalty_of(self.learner)
        standing.divergence = divergence(scored)
        strength = standing.kl_strength
        if strength is None:
            strength = kl.strength if kl is not None else 0.0
        if self.bounds.kl is not None:
            strength = standing.kl_strength = self.bounds.kl.next_strength(strength, standing.divergence)
        return {"train_kl_reference": standing.divergence, "train_kl_strength": strength}

    def _hand_in(self, data: list[tinker.Datum], asked: Asked, at: Moment) -> _HandedIn:
        """All passes and steps, sent before any is waited for."""
        handed_in = _HandedIn(value_step=asked.value_step)
        for _ in range(self.passes if data else 0):
            passed = self.client.forward_backward(data, self.learner.loss, self.learner.config)
            handed_in.passes.append(passed)
            handed_in.steps.append(self.client.optim_step(adam_of(self.plan, at.learning_rate)))
        return handed_in

    async def _metrics(self, step: _Step, found: Metrics, handed_in: _HandedIn) -> Metrics:
        # Told with the step's figures and not before, so that whoever watches the grader can say it in other words.
        _check_graded(step.played, step.number)
        outputs = [await each for each in handed_in.passes]
        for each in handed_in.steps:
            await each
        if outputs:
            # The first pass is the one whose ratios begin at the weights that sampled.
            found |= measures.of_pass(step.data, outputs[0], self.learner.config)
        if handed_in.value_step is not None:
            found["train_value_loss"] = await handed_in.value_step.loss()
        n_tokens = float(sum(datum.model_input.length for datum in step.data))
        return found | measures.of_trainer(step.scored) | {"train_datums": float(len(step.data)), TOKENS: n_tokens}

    async def evaluate(self, examples: Sequence[Any]) -> Metrics:
        """`valid_reward_mean` of held-out tasks by the newest weights: of one answer to each, at temperature 0, or of
        several that are drawn."""
        # A collector of its own, so that an evaluation neither takes nor delays what is being played for the next step.
        player = self.player.for_looking(self.eval_samples)
        collector = Collector(play=player.group, pace=replace(self.pace, staleness=0), revision=lambda: 0)
        collector.add(0, examples)
        played = await collector.take(0)
        found = measures.of_rollouts(played, 0)
        kept = ("reward_mean", "answer_tokens", "cut_off", "failed", "ungraded")
        parts = {name: value for name, value in found.items() if name.startswith("train_part_")}
        return {
            name.replace("train_", "valid_", 1): value
            for name, value in ({f"train_{name}": found[f"train_{name}"] for name in kept} | parts).items()
        }

    @property
    def is_spent(self) -> bool:
        """Whether a budget of the run is spent, so that it should make no further step."""
        bounds = self.bounds
        if bounds.most_tokens is not None and self.standing.n_tokens >= bounds.most_tokens:
            return True
        return bounds.kl is not None and bounds.kl.is_spent(self.standing.divergence)

    def state(self) -> dict[str, Any]:
        """What the run must remember beside its weights."""
        if self.watched is not None:
            self.standing.n_given = self.watched.n_given
        return asdict(self.standing)

    def restore(self, state: dict[str, Any]) -> None:
        """Takes back what `state` gave."""
        self.standing = Standing(**state)
        if self.watched is not None:
            # A grader that has given rewards before is not broken, whatever happens to the first answers from here.
            self.watched.n_given = self.standing.n_given

    async def close(self) -> None:
        """Gives up what is still being sampled, and closes what was made for this run alone."""
        # Before the tools are closed: an episode in the middle may still be using them.
        await self.collector.close()
        for close in self.closed_too:
            await close()


def _by_group(scored: Sequence[Scored]) -> list[list[Scored]]:
    groups: dict[str, list[Scored]] = {}
    for one in scored:
        groups.setdefault(one.trace.rollout.group, []).append(one)
    return [*groups.values()]


def _check_sampled(played: Sequence[Played], step: int) -> None:
    """NothingSampled where not one answer of a step came back: what fails for every answer is no chance, and a run that
    went on would cost hours and teach nothing."""
    if not any(one.group.rollouts for one in played):
        why = next((trouble for one in played for trouble in one.group.troubles), "nothing was sampled")
        raise NothingSampled(f"Not one answer of step {step} came back: {why}")


def _check_graded(played: Sequence[Played], step: int) -> None:
    """StepUngraded where not one answer of a step has a reward, likewise."""
    if not any(one.group.graded for one in played):
        troubles = [rollout.trouble for one in played for rollout in one.group.rollouts if rollout.trouble]
        why = troubles[0] if troubles else "all of them are empty"
        raise StepUngraded(f"Not one answer of step {step} could be graded: {why}")

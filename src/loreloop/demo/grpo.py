"""Stage (b): GRPO on sums, out of the cookbook's reinforcement-learning pieces.

Each step asks several questions many times, rewards the right answers, centres the rewards within each question's
group and takes one importance-sampled policy-gradient step. The environment speaks the model's own chat template.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import tinker
from tinker_cookbook.completers import StopCondition, TokenCompleter, TokensWithLogprobs
from tinker_cookbook.rl.data_processing import (
    assemble_training_data,
    compute_advantages,
    remove_constant_reward_groups,
)
from tinker_cookbook.rl.rollouts import do_group_rollout
from tinker_cookbook.rl.types import Action, ActionExtra, Env, EnvGroupBuilder, StepResult, TrajectoryGroup

from loreloop.demo.questions import Question

MAX_ANSWER_TOKENS = 12


@dataclass(frozen=True)
class GrpoPlan:
    """One stage of training. The learning rate falls linearly to `final_rate_share` of itself.

    `review_groups` questions a step come from the stage before, lest it be forgotten.
    """

    steps: int
    groups: int
    group_size: int
    learning_rate: float
    final_rate_share: float = 0.1
    review_groups: int = 0

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0: it falls linearly to `final_rate_share` of the first."""
        left = 1 - step / max(1, self.steps - 1)
        return self.learning_rate * (self.final_rate_share + (1 - self.final_rate_share) * left)


class SumEnv(Env):
    """One question; the reward is 1 if the reply ends with the right number, 0 otherwise."""

    def __init__(self, tokenizer: Any, question: Question) -> None:
        self.tokenizer = tokenizer
        self.question = question

    @property
    def stop_condition(self) -> StopCondition:
        """The token that ends an answer."""
        return [self.tokenizer.eos_token_id]

    async def initial_observation(self) -> tuple[tinker.ModelInput, StopCondition]:
        """The question in the model's chat template, as tokens, and what ends the answer."""
        chat = [{"role": "user", "content": self.question.text}]
        text = self.tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        return tinker.ModelInput.from_ints(ids), self.stop_condition

    async def step(self, action: Action, *, extra: ActionExtra | None = None) -> StepResult:
        """The reward for the answer; every episode has one step."""
        right = self.question.is_answered_by(self.tokenizer.decode(action, skip_special_tokens=True))
        return StepResult(
            reward=float(right),
            episode_done=True,
            next_observation=tinker.ModelInput.empty(),
            next_stop_condition=self.stop_condition,
            metrics={"correct": float(right)},
        )


@dataclass(frozen=True)
class SumGroup(EnvGroupBuilder):
    """The environments of one group, which all ask the same question; their rewards are compared with one another."""

    tokenizer: Any
    question: Question
    size: int

    async def make_envs(self) -> Sequence[Env]:
        """As many environments as the group is large."""
        return [SumEnv(self.tokenizer, self.question) for _ in range(self.size)]


class GroupPolicy(TokenCompleter):
    """Answers the environments of one group, which all ask the same, out of one request."""

    def __init__(self, sampler: tinker.SamplingClient, size: int) -> None:
        self.sampler, self.size = sampler, size
        self.pending: asyncio.Task[tinker.SampleResponse] | None = None
        self.n_answered = 0

    async def __call__(
        self, model_input: tinker.ModelInput, stop: StopCondition, *, max_tokens: int | None = None
    ) -> TokensWithLogprobs:
        # The first environment asks for all; the others take their share of the same answer.
        if self.pending is None:
            params = tinker.SamplingParams(stop=stop, max_tokens=max_tokens or MAX_ANSWER_TOKENS, temperature=1.0)
            request = self.sampler.sample_async(prompt=model_input, num_samples=self.size, sampling_params=params)
            self.pending = asyncio.ensure_future(request)
        number, self.n_answered = self.n_answered, self.n_answered + 1
        sequence = (await self.pending).sequences[number]
        return TokensWithLogprobs(sequence.tokens, sequence.logprobs, sequence.stop_reason)


def train(
    client: tinker.TrainingClient,
    tokenizer: Any,
    questions: Sequence[Question],
    plan: GrpoPlan,
    after_step: Callable[[int, float, tinker.SamplingClient], None],
    review: Sequence[Question] = (),
) -> None:
    """Runs the plan; `after_step` gets the step, its mean reward without reviewing, and the sampler that earned it."""
    rng = random.Random(0)
    for step in range(plan.steps):
        sampler = client.save_weights_and_get_sampling_client().result()
        # Questions for review come last, so that the first `groups` rewards are those of this stage.
        chosen = rng.sample(list(questions), plan.groups) + rng.sample(list(review), plan.review_groups)
        groups = asyncio.run(_roll_out(sampler, [SumGroup(tokenizer, q, plan.group_size) for q in chosen]))
        rewards = [reward for group in groups[: plan.groups] for reward in group.get_total_rewards()]
        _learn(client, groups, plan.rate(step))
        after_step(step, sum(rewards) / len(rewards), sampler)


async def _roll_out(sampler: tinker.SamplingClient, builders: list[SumGroup]) -> list[TrajectoryGroup]:
    return await asyncio.gather(
        *(do_group_rollout(builder, GroupPolicy(sampler, builder.size)) for builder in builders)
    )


def _learn(client: tinker.TrainingClient, groups: list[TrajectoryGroup], learning_rate: float) -> None:
    # Where all answers of a group earn the same, the advantages are zero and nothing can be learned.
    informative = remove_constant_reward_groups(groups)
    data, _ = assemble_training_data(informative, compute_advantages(informative))
    # Both are sent before either is waited for: the server runs them in order, and the way back is saved.
    passed = client.forward_backward([_without_mask(datum) for datum in data], "importance_sampling")
    stepped = client.optim_step(tinker.AdamParams(learning_rate=learning_rate, beta2=0.95, eps=1e-8))
    passed.result()
    stepped.result()


def _without_mask(datum: tinker.Datum) -> tinker.Datum:
    # The cookbook adds a mask, which is no input of this loss.
    inputs = {name: values for name, values in datum.loss_fn_inputs.items() if name != "mask"}
    return tinker.Datum(model_input=datum.model_input, loss_fn_inputs=inputs)

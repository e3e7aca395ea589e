"""Environments of the cookbook, as they are: played by its own runner, learned from by our loop."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
import tinker
from tinker_cookbook import renderers
from tinker_cookbook.recipes.math_rl.arithmetic_env import ArithmeticDataset
from tinker_cookbook.rl.data_processing import assemble_training_data, compute_advantages
from tinker_cookbook.rl.rollouts import do_group_rollout
from tinker_cookbook.rl.types import Env, EnvGroupBuilder, StepResult
from transformers import AutoTokenizer

from loreloop.cli.server import RunningServer
from loreloop.learn.environments.cookbook import Alike, Completer, CookbookPlayer, builders_of, group_of
from loreloop.learn.learners.evidence import Evidence
from loreloop.learn.learners.grpo import Grpo
from loreloop.learn.learners.policy import Scored
from loreloop.learn.learners.reinforce_loop import RewardLearner
from loreloop.learn.rollouts.drawing import AnswerLimits, Policy, Requests
from loreloop.learn.rollouts.traces import traces_of
from loreloop.learn.rollouts.values import Group, Observed
from tests.learn.fake_sampler import STOP, FakeSampler
from tests.learn.rollout_rig import tensor
from tests.learn.runs import plan, run_of

pytestmark = pytest.mark.filterwarnings("ignore")


class Scripted(Env):
    """Shows given observations one after another. "+" in front of one: it goes on behind all that was before."""

    def __init__(self, *shown: list[int], rewards: Sequence[float], masked: int = -1) -> None:
        self.shown, self.rewards, self.masked, self.n = shown, rewards, masked, 0
        self.past: list[int] = []

    async def initial_observation(self):
        return self._next(), [STOP]

    async def step(self, action, *, extra=None) -> StepResult:
        self.past += action
        self.n += 1
        done = self.n == len(self.shown)
        return StepResult(
            reward=self.rewards[self.n - 1],
            episode_done=done,
            next_observation=tinker.ModelInput.empty() if done else self._next(),
            next_stop_condition=[STOP],
            metrics={"turns": self.n, **({"parse_error_masked": 1.0} if self.n - 1 == self.masked else {})},
        )

    def _next(self) -> tinker.ModelInput:
        shown = self.shown[self.n]
        self.past = self.past + shown[1:] if shown[0] == 0 else [*shown]
        return tinker.ModelInput.from_ints(self.past)


class Builder(EnvGroupBuilder):
    def __init__(self, *envs: Scripted, group_rewards: Sequence[float] = ()) -> None:
        self.envs, self.group_rewards = envs, group_rewards

    async def make_envs(self) -> Sequence[Env]:
        return self.envs

    async def compute_group_rewards(self, trajectory_group, env_group):
        return [(reward, {}) for reward in self.group_rewards or [0.0] * len(trajectory_group)]


def builder() -> Builder:
    """One episode in one row, one whose past is told anew before its last turn, and one with a turn to be left out."""
    return Builder(
        Scripted([1, 3], [0, 7, 8], rewards=[0.25, 0.5]),
        Scripted([1, 3], [0, 7], [5, 5, 5], rewards=[0.0, 1.0, 2.0]),
        Scripted([1, 4], [0, 7], rewards=[0.0, 0.0], masked=0),
        group_rewards=[1.0, 0.0, -1.0],
    )


def requests() -> Requests:
    return Requests(Policy(FakeSampler(length=lambda prompt: 2), revision=6))


def played() -> Group:
    return asyncio.run(CookbookPlayer(requests(), AnswerLimits()).group(builder(), 4))


def test_episodes_become_rollouts() -> None:
    plain, told_anew, masked = played().rollouts
    assert [rollout.reward for rollout in (plain, told_anew, masked)] == [1.75, 3.0, -1.0]
    assert plain.prompt.to_ints() == [1, 3]
    assert [turn.tokens for turn in plain.turns] == [(100, STOP), (7, 8), (100, STOP)]
    assert isinstance(plain.turns[1], Observed)
    assert {revision for turn in plain.answers for revision in turn.revisions} == {6}
    assert [context.prompt.to_ints() for context in told_anew.contexts] == [[1, 3], [5, 5, 5]]
    assert [turn.learned for turn in masked.answers] == [False, True]
    assert (plain.episode, plain.group, plain.parts["turns"]) == ("4.0", "4", 2)


def test_the_data_is_that_of_the_cookbooks_own_loop() -> None:
    theirs = asyncio.run(do_group_rollout(builder(), Completer(requests(), AnswerLimits())))
    data, _ = assemble_training_data([theirs], compute_advantages([theirs]))
    group = [Scored(trace) for rollout in group_of(theirs, 0).rollouts for trace in traces_of(rollout)]
    ours = Grpo(scaled=False, normalisation="sum").datums([group])
    assert len(ours) == len(data) == 4
    for own, their in zip(ours, data, strict=True):
        assert own.model_input.to_ints() == their.model_input.to_ints()
        for name in ("target_tokens", "advantages"):
            assert tensor(own, name).tolist() == pytest.approx(tensor(their, name).tolist())
        # Ours are 0 where nothing is learned, and theirs those of the tokens left out.
        learned = tensor(their, "mask") > 0
        assert tensor(own, "logprobs")[learned].tolist() == tensor(their, "logprobs")[learned].tolist()


def test_a_dataset_of_the_cookbook_is_learned_from(server: RunningServer, tiny_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    renderer = renderers.get_renderer("role_colon", tokenizer)
    builders = builders_of(ArithmeticDataset(2, renderer, group_size=4, n_batches=3))

    async def kind(made, clients) -> RewardLearner:
        client = await clients.training()
        policy = Policy(await client.save_weights_and_get_sampling_client())
        player = CookbookPlayer(Requests(policy), AnswerLimits(most_tokens=5, seed=1))
        return RewardLearner(made, Grpo(skip_flat=False), player, policy, Evidence(client))

    ran = run_of(server, kind, plan(batch_size=2), builders)
    assert ran.ending == "finished"
    assert [record.step for record in ran.records] == [1, 2, 3]
    assert all("train_part_correct" in record.metrics for record in ran.records)
    assert all(record.metrics["train_failed"] == 0 for record in ran.records)


def test_a_builders_reward_that_is_no_number_is_not_learned_from() -> None:
    odd = Builder(Scripted([1, 3], rewards=[float("nan")]), Scripted([1, 3], rewards=[1.0]))
    group = asyncio.run(CookbookPlayer(requests(), AnswerLimits()).group(odd, 0))
    assert [rollout.reward for rollout in group.graded] == [1.0]


def test_an_env_alone_makes_a_group() -> None:
    alone = Alike(lambda: Scripted([1, 3], [0, 7], rewards=[0.25, 0.5]), n=3)
    group = asyncio.run(CookbookPlayer(requests(), AnswerLimits()).group(alone, 0))
    assert [rollout.reward for rollout in group.graded] == [0.75] * 3
    assert [len(rollout.answers) for rollout in group.rollouts] == [2] * 3

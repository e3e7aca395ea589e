"""The reward of a loop, put together as its loop.toml says: a stream that learns, a grader, or a mix of both.

Knows how the parts fit, and none of their formulas.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import tinker

from loreloop.learn.loop.config import Loaded
from loreloop.learn.loop.cycle_files import trained_prompts
from loreloop.learn.loop.reward.events import HeldOut
from loreloop.learn.loop.reward.features import Features
from loreloop.learn.loop.reward.labels import LabelRules
from loreloop.learn.loop.reward.linear import LinearReward, LinearSettings
from loreloop.learn.loop.reward.lora import LoraReward, LoraSettings
from loreloop.learn.loop.reward.mix import LearnedReward, Mixed, Part, mix_of
from loreloop.learn.loop.reward.stream import Forgetting, RewardStream, Rules
from loreloop.learn.loop.sessions import closed
from loreloop.learn.refusals import Refused, in_our_words
from loreloop.learn.rendering import Renderer
from loreloop.learn.rewards.graders.grader import Means
from loreloop.learn.rewards.graders.reading import GraderReward, grader_of
from loreloop.learn.rewards.reward import Reward
from loreloop.learn.rewards.sandbox import CodeSandbox
from loreloop.learn.rewards.served_models import served_judge
from loreloop.protocol.episodes import Message, Person, Turn
from loreloop.protocol.errors import Conflict
from loreloop.protocol.feedback import Feedback, Metric

FOLDER = "reward"  # in the loop's own


@dataclass(frozen=True)
class Base:
    """The base model that a LoRA reward is an adapter of. `anew` opens a session for the reward alone, and another one
    for a reward that is made once more, so that what the one before has left at the server can go."""

    service: tinker.ServiceClient
    name: str
    renderer: Renderer
    anew: Callable[[], tinker.ServiceClient] | None = None


class Rewarding:
    """`key` is the loop's, in whose name judges are asked. `deleted` tells who was deleted, as `person_key` writes it;
    `golden` whether a prompt is in the loop's own golden file; `declared` are the deployment's own metrics."""

    def __init__(
        self,
        loaded: Loaded,
        base: Base,
        key: str,
        deleted: Callable[[], frozenset[str]],
        golden: HeldOut,
        declared: Mapping[str, Metric] | None = None,
    ) -> None:
        self.loaded, self.deleted, self.golden, self.declared = loaded, deleted, golden, declared or {}
        self.means = Means(CodeSandbox(), served_judge(loaded.config.url, key))
        self.base, self.is_lost = base, False
        # The session of a LoRA reward: what it leaves at the server when it is made once more can go with that.
        self.own: tinker.ServiceClient | None = None
        self.stream = self._once_more() if loaded.config.reward.kind == "lora" else self._stream(base)
        self.reward = self._reward()

    def lose(self) -> None:
        """Says that something has failed at the server: a LoRA reward may have lost its model, or have learned or
        forgotten by half."""
        self.is_lost = self.loaded.config.reward.kind == "lora"

    async def whole(self) -> None:
        """Makes a reward whose model may be lost once more, with all that stands beside it, out of what it has saved
        last. To be awaited before anything asks it."""
        if self.is_lost:
            with in_our_words("the reward's weights"):
                self.stream = await asyncio.to_thread(self._once_more)
            self.reward, self.is_lost = self._reward(), False

    async def hear(self, turns: Sequence[Turn], statements: Sequence[Feedback]) -> str:
        """Lets the reward learn what is new; an alarm in a sentence, or ""."""
        if self.stream is None:
            return ""
        persons = [Person(*person.split("\n", 1)) for person in self.deleted()]
        try:
            with in_our_words("what the reward learns from"):
                heard = await asyncio.to_thread(self.stream.hear, turns, statements, persons)
        except Refused as error:
            # Others' words may be taken, but none of this reward's would be: people have to look at it.
            raise Conflict(f"{error.message} The loop cannot go on without its reward.") from None
        if isinstance(self.stream.proxy, LoraReward) and self.stream.proxy.n_models > 1:
            # Of a reward that has learned anew, the server still has the model before, until its session ends.
            self.lose()
            await self.whole()
        return heard.alarm

    def holds(self, messages: Sequence[Message]) -> bool:
        """Whether a prompt is in the stream's golden set, and so may not be trained on."""
        return self.stream is not None and self.stream.golden.holds(messages)

    async def close(self) -> None:
        """Ends the processes of code graders, and a session of the reward's own."""
        if self.own is not None:
            await asyncio.to_thread(closed, self.own)
        if self.means.sandbox is not None:
            await self.means.sandbox.close()

    def _once_more(self) -> RewardStream | None:
        if self.base.anew is None:
            return self._stream(self.base)
        service = self.base.anew()
        with ExitStack() as stack:
            stack.callback(closed, service)
            stream = self._stream(replace(self.base, service=service))
            stack.pop_all()
        before, self.own = self.own, service
        if before is not None:
            closed(before)
        return stream

    def _stream(self, base: Base) -> RewardStream | None:
        kind, seed = self.loaded.config.reward.kind, self.loaded.config.seed
        if kind == "none":
            return None
        proxy: Forgetting
        if kind == "linear":
            proxy = LinearReward(LinearSettings(features=Features(), seed=seed))
        else:
            # Two loops on one server must not save under one name.
            name = f"reward-{self.loaded.config.deployment}"
            proxy = LoraReward(base.service, base.name, base.renderer, LoraSettings(seed=seed, name=name))
        return RewardStream(self.loaded.folder / FOLDER, proxy, self._rules())

    def _rules(self) -> Rules:
        """What the reward learns from: the usual metrics, those of the deployment's own that count in the canary, and
        what `reward.metrics` says."""
        config = self.loaded.config
        own = dict.fromkeys((one for one in config.canary.metrics if one in self.declared), 1.0)
        weights = own | LabelRules().metrics | config.reward.metrics
        return Rules(
            labels=LabelRules(metrics=weights),
            metrics=self.declared,
            held_out=self.golden,
            trained=lambda: trained_prompts(self.loaded.folder),
        )

    def _reward(self) -> Reward | None:
        table = self.loaded.config.reward
        model = self.stream.proxy if self.stream else None
        if table.mix is not None:
            return mix_of(self.loaded.path(table.mix), model, self.means)
        grader = GraderReward(grader_of(table.grader, "reward.grader"), self.means) if table.grader else None
        learned = LearnedReward(model) if model is not None else None
        if grader is not None and learned is not None:
            return Mixed([Part(name="people"), Part(name="grader")], [learned, grader])
        return learned or grader

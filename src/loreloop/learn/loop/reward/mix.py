"""One reward of several: the learned one, graders and judges, with weights, as a TOML file says.

    [[part]]
    name = "people"
    weight = 1.0                # learned is the default kind

    [[part]]
    name = "right"
    weight = 2.0
    applies = "sum"             # a field of the task; where it lacks, the part has no say

    [part.grader]               # of docs/graders.md
    type = "string_check"
    name = "right"
    operation = "like"
    input = "{{ sample.output_text }}"
    reference = "{{ item.answer }}"

Every part lies in 0 … 1: graders do by themselves, and of the learned reward it is the chance that people would prefer
the answer to a usual one, which bounds it and so takes the prize from answers far outside of what was judged. The mix
is the mean by weights of the parts that apply, less `length_penalty` for every hundred words.
"""

from __future__ import annotations

import asyncio
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from loreloop.learn.examples import Task
from loreloop.learn.loop.reward.calibration import Link
from loreloop.learn.loop.reward.events import RewardModel, Scored
from loreloop.learn.rewards.graders.grader import Means
from loreloop.learn.rewards.graders.reading import GraderReward, grader_of
from loreloop.learn.rewards.reward import Answer, Reward, Score
from loreloop.protocol.episodes import Message
from loreloop.protocol.errors import BadRequest

Name = Annotated[str, Meta(min_length=1, max_length=100)]


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One reward of the mix: the learned one, or a grader's."""

    name: Name
    weight: Annotated[float, Meta(gt=0, le=1000)] = 1.0
    grader: dict[str, Any] | None = None
    applies: Name | None = None


class MixFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the file says."""

    part: Annotated[tuple[Part, ...], Meta(min_length=1, max_length=32)]
    length_penalty: Annotated[float, Meta(ge=0, le=10)] = 0.0


class LearnedReward:
    """A streaming reward as a learner asks for it: from 0 to 1, the chance that people would prefer an answer to one
    that scores as the mean of the reference set."""

    def __init__(self, model: RewardModel) -> None:
        self.model, self.lock = model, asyncio.Lock()

    async def __call__(self, answer: Answer, task: Task) -> Score:
        """The chance, with the raw score as a part."""
        item = Scored(messages_of(task), answer.text)
        # Models block, and are asked from one thread at a time.
        async with self.lock:
            (score,) = await asyncio.to_thread(self.model.score, [item])
        version = self.model.version
        clear = float(Link(version.slope).of(np.array([score]))[0])
        return Score(clear, {"score": score, "version": float(version.number)})


class Mixed:
    """Several rewards as one. A part that has trouble is that of the whole: half a reward would be another one."""

    def __init__(self, parts: Sequence[Part], rewards: Sequence[Reward], length_penalty: float = 0.0) -> None:
        self.parts, self.rewards, self.length_penalty = parts, rewards, length_penalty

    async def __call__(self, answer: Answer, task: Task) -> Score:
        """The mean by weights; the parts are told by their names."""
        asked = [
            (part, reward)
            for part, reward in zip(self.parts, self.rewards, strict=True)
            if part.applies is None or part.applies in task.item
        ]
        if not asked:
            return Score(0.0, trouble="no part of the mix applies to this task")
        scores = await asyncio.gather(*(reward(answer, task) for _, reward in asked))
        told = {part.name: score.value for (part, _), score in zip(asked, scores, strict=True)}
        for (part, _), score in zip(asked, scores, strict=True):
            if score.trouble is not None:
                return Score(0.0, told, f"{part.name}: {score.trouble}")
        total = sum(part.weight for part, _ in asked)
        value = sum(part.weight * told[part.name] for part, _ in asked) / total
        return Score(value - self.length_penalty * len(answer.text.split()) / 100, told)


def mix_of(file: Path, learned: RewardModel | None, means: Means) -> Mixed:
    """The mix that a file describes. BadRequest names the field that is wrong."""
    try:
        plain = tomllib.loads(file.read_text(encoding="utf-8"))
        read = msgspec.convert(plain, MixFile)
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise BadRequest(f"The reward mix {file} cannot be read: {error}.") from None
    names = [part.name for part in read.part]
    for number, part in enumerate(read.part):
        if names.index(part.name) != number:
            raise BadRequest(f"The reward mix {file} has two parts named {part.name!r}; give each a name of its own.")
        if part.grader is None and learned is None:
            raise BadRequest(
                f"The part {part.name!r} of the reward mix {file} is the learned reward, and this loop learns none: "
                "give it a grader, or set reward.kind."
            )
    rewards = [_reward(part, learned, means, f"part[{number}].grader") for number, part in enumerate(read.part)]
    return Mixed(read.part, rewards, read.length_penalty)


def _reward(part: Part, learned: RewardModel | None, means: Means, where: str) -> Reward:
    if part.grader is not None:
        return GraderReward(grader_of(part.grader, where), means)
    assert learned is not None  # looked at before, so that the error names the file
    return LearnedReward(learned)


def messages_of(task: Task) -> tuple[Message, ...]:
    """A task's prompt as chat messages: those that it came with, or else the texts of its turns."""
    found = task.item.get("messages")
    if isinstance(found, list | tuple) and all(isinstance(one, Mapping) for one in found):
        return tuple(dict(one) for one in found)
    return tuple({"role": turn.role, "content": turn.content} for turn in task.prompt.turns)

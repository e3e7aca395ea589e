"""From a revision's answers to the reading that a guard compares, and the split of people between two rewards.

Knows neither how answers were drawn nor what alarms there are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from loreloop.learn.loop.guards import Reading, measured
from loreloop.learn.loop.reward.events import NOBODY, LabelledEvent, RewardModel, Scored, item_key
from loreloop.learn.loop.reward.features import Features
from loreloop.learn.loop.reward.form import is_refusal, repetition
from loreloop.learn.loop.reward.linear import LinearReward, LinearSettings

Judge = Callable[
    [Scored], float
]  # a golden measure of one answer: a grader, a person, a comparison with a known answer


@dataclass(frozen=True)
class Look:
    """One answer of a revision: its length in tokens (None: its words are counted), and whether a tool call failed."""

    item: Scored
    n_tokens: int | None = None
    tool_failed: bool = False


@dataclass(frozen=True)
class Eyes:
    """What looks at answers: the reward that is optimised, one that is not, and golden measures by metric."""

    proxy: RewardModel
    second: RewardModel | None = None
    golden: Mapping[str, Judge] = field(default_factory=dict)


def reading_of(revision: str, looks: Sequence[Look], eyes: Eyes, *, kl: float = 0.0, created: float = 0.0) -> Reading:
    """All measures of a revision by its answers, one to each prompt. `kl` is in nats an answer."""
    items = [look.item for look in looks]
    lengths = [float(len(look.item.answer.split()) if look.n_tokens is None else look.n_tokens) for look in looks]
    return Reading(
        revision=revision,
        proxy=measured(eyes.proxy.score(items)),
        golden={name: measured([judge(item) for item in items]) for name, judge in eyes.golden.items()},
        second=measured(eyes.second.score(items)) if eyes.second else None,
        kl=kl,
        length=measured(lengths),
        refusals=measured([float(is_refusal(item.answer)) for item in items]),
        tool_errors=measured([float(look.tool_failed) for look in looks]),
        repetition=measured([repetition(item.answer) for item in items]),
        created=created,
    )


def second_opinion(seed: int = 1) -> LinearReward:
    """A reward of another make, for what is never optimised: other hashes, fewer places, and a prior of its own."""
    return LinearReward(LinearSettings(features=Features(bits=14, seed=1000 + seed), seed=seed))


def is_for_second(event: LabelledEvent, share: float = 0.25) -> bool:
    """Whether an event belongs to the second reward alone: a share of the people, so that no quirk of one of them is in
    both. What is nobody's opinion is divided by its answers."""
    name = event.person if event.person != NOBODY else item_key(event.item)
    return int.from_bytes(hashlib.sha256(f"second {name}".encode()).digest()[:8]) / 2**64 < share

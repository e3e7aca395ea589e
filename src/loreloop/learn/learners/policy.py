"""What the learners from rewards share: what they are given, what they give, and how a row becomes a datum.

A learner is a pure function from groups of scored traces to datums of one of the protocol's losses. Each loss is a sum
over tokens, so whatever a learner divides by is in the advantages that it writes. Knows no client.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
import tinker
from numpy.typing import NDArray

from loreloop.learn.advantages import centred, is_flat
from loreloop.learn.rollouts.traces import Trace

Array = NDArray[np.float64]
LossName = Literal["importance_sampling", "ppo", "cispo"]  # of the protocol's losses, those that learners here use
Need = Literal["trainer", "reference", "teacher", "hindsight", "values"]
Normalisation = Literal["sum", "tokens", "answers"]


@dataclass(frozen=True)
class Scored:
    """A trace with what else was asked about its targets; each has shape (N,), and None where no learner needed it.

    `trainer`: log-probabilities of the weights that learn, before their step. `reference` and `teacher`: those of other
    weights. `hindsight`: those of the same weights, shown what came after. `values`: what is expected to be earned from
    each target on.
    """

    trace: Trace
    trainer: Array | None = None
    reference: Array | None = None
    teacher: Array | None = None
    hindsight: Array | None = None
    values: Array | None = None

    @property
    def old(self) -> Array:
        """The log-probabilities that a ratio is taken against: the trainer's where they were asked for, else those of
        sampling time."""
        return np.asarray(self.trace.logprobs if self.trainer is None else self.trainer, np.float64)

    def known(self, need: Need) -> Array:
        """What was asked. ValueError where it was not, which is a mistake of whoever called the learner."""
        # Spelled out, so that a need without a field is an error of types and not of a run's third hour.
        rows: dict[Need, Array | None] = {
            "trainer": self.trainer,
            "reference": self.reference,
            "teacher": self.teacher,
            "hindsight": self.hindsight,
            "values": self.values,
        }
        found = rows[need]
        if found is None:
            raise ValueError(f"this learner needs {need!r} of every trace")
        return found


ScoredGroup = Sequence[Scored]


class PolicyLearner(Protocol):
    """One way to learn from rewards."""

    @property
    def loss(self) -> LossName:
        """The name of the protocol's loss that its datums are for."""
        ...

    @property
    def config(self) -> Mapping[str, float]:
        """The settings of that loss."""
        ...

    @property
    def needs(self) -> frozenset[Need]:
        """What must be asked about each trace beside what sampling told."""
        ...

    def datums(self, groups: Sequence[ScoredGroup]) -> list[tinker.Datum]:
        """One datum for each trace that there is something to learn from."""
        ...


@dataclass(frozen=True)
class Weighted:
    """A trace with an advantage for each of its targets, shape (N,); 0 where nothing is learned."""

    scored: Scored
    advantages: Array


def reward_of(scored: Scored) -> float:
    """What the episode earned."""
    return scored.trace.rollout.reward


def informative(groups: Sequence[ScoredGroup]) -> list[ScoredGroup]:
    """Without the groups in which all earned the same: their advantages are zero, and passes over them cost time."""
    return [group for group in groups if not is_flat([reward_of(scored) for scored in group])]


def compared(
    group: ScoredGroup, *, scaled: bool, extra: Callable[[Scored], float] = lambda scored: 0.0
) -> list[Weighted]:
    """Each answer's advantage over its group, for every token that the model said. `extra` is added to rewards.

    An episode of several rows counts once, and all of its rows get its advantage.
    """
    # By identity: two answers of a group may be equal in every field, and are two samples all the same.
    first = {id(scored.trace.rollout): scored for scored in reversed(group)}
    values = centred([reward_of(scored) + extra(scored) for scored in first.values()], scaled=scaled)
    advantages = dict(zip(first, values, strict=True))
    return [spread_over(scored, float(advantages[id(scored.trace.rollout)])) for scored in group]


def spread_over(scored: Scored, advantage: float) -> Weighted:
    """One advantage for every token that the model said."""
    return Weighted(scored, np.where(scored.trace.learned, advantage, 0.0))


def normalised(rows: Sequence[Weighted], how: Normalisation) -> list[Weighted]:
    """Advantages divided so that the protocol's sum becomes another mean.

    `tokens`: over all tokens of the batch, so that each counts the same (DAPO). `answers`: over each answer's own
    tokens, then over answers (GRPO as it was published), by which long answers' tokens count less. `sum`: as they are.
    """
    if how == "sum":
        return list(rows)
    # The protocol's losses are sums, so a mean is made here, by what its tokens are worth.
    n_tokens = max(1, sum(row.scored.trace.n_learned for row in rows))
    divided = []
    for row in rows:
        own = max(1, row.scored.trace.n_learned) * len(rows)
        divided.append(replace(row, advantages=row.advantages / (n_tokens if how == "tokens" else own)))
    return divided


def datum(row: Weighted) -> tinker.Datum:
    """The row for any of the policy losses, which all take the same three inputs."""
    trace = row.scored.trace
    learned = trace.learned
    return tinker.Datum(
        model_input=trace.model_input,
        loss_fn_inputs={
            "target_tokens": tinker.TensorData.from_numpy(trace.targets),
            # Zeros outside: a ratio is taken only where an advantage is, and what an image's place would have is NaN.
            "logprobs": _float32(np.where(learned, row.scored.old, 0.0)),
            "advantages": _float32(np.where(learned, row.advantages, 0.0)),
        },
    )


def datums_of(rows: Sequence[Weighted]) -> list[tinker.Datum]:
    """The datums of all rows in which any token has an advantage."""
    # A row of zeros has no gradient but costs a pass like any other.
    return [datum(row) for row in rows if row.advantages[row.scored.trace.learned].any()]


def _float32(values: Array) -> tinker.TensorData:
    return tinker.TensorData.from_numpy(values.astype(np.float32))

"""Asks the clients what a learner needs to know of each trace beside what sampling told.

One pass or one request a trace for each need; what no learner needs is never asked. Knows no learner in particular.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tinker
from numpy.typing import NDArray

from loreloop.learn.learners.policy import Need, Scored
from loreloop.learn.learners.value_adapter import ValueAdapter, ValueStep
from loreloop.learn.rollouts.traces import Trace, traces_of, whole_input
from loreloop.learn.rollouts.values import Rollout

Array = NDArray[np.float64]
Scorer = tinker.TrainingClient | tinker.SamplingClient
Targets = Callable[[Sequence[Trace]], Sequence[Array]]


@dataclass(frozen=True)
class Asked:
    """What is known of a batch's traces, and the step of the value adapter that was handed in for it."""

    scored: list[Scored]
    value_step: ValueStep | None = None


@dataclass
class Evidence:
    """Whom to ask. `teacher` must share the policy's tokenizer, or its log-probabilities are of other words."""

    client: tinker.TrainingClient
    reference: Scorer | None = None
    teacher: Scorer | None = None
    values: ValueAdapter | None = None

    async def scored(
        self, rollouts: Sequence[Rollout], needs: frozenset[Need], targets: Targets | None = None
    ) -> Asked:
        """All traces of all rollouts in their order, with what the needs name. Values are told by the very step of
        their adapter towards `targets`. ValueError where nobody was given who could be asked."""
        # Laid out once: every need is asked about the same rows, in the same order.
        found = [Scored(trace) for rollout in rollouts for trace in traces_of(rollout)]
        traces = [scored.trace for scored in found]
        if "trainer" in needs:
            found = _with(found, "trainer", await trainer_logprobs(self.client, traces))
        if "reference" in needs:
            found = _with(found, "reference", await logprobs_of(self.reference, traces))
        if "teacher" in needs:
            found = _with(found, "teacher", await logprobs_of(self.teacher, traces))
        if "values" not in needs or not traces:
            return Asked(found)
        if self.values is None or targets is None:
            raise ValueError("this learner needs a value adapter and its targets, and none were given")
        step = self.values.learn(traces, targets(traces))
        return Asked(_with(found, "values", await step.values()), step)


def _with(found: Sequence[Scored], need: Need, rows: Sequence[Array]) -> list[Scored]:
    known: list[dict[str, Any]] = [{need: row} for row in rows]
    return [replace(scored, **each) for scored, each in zip(found, known, strict=True)]


async def logprobs_of(scorer: Scorer | None, traces: Sequence[Trace]) -> list[Array]:
    """log π of every target under a client's weights, by whichever way it has; each of shape (N,)."""
    if scorer is None:
        raise ValueError("this learner asks other weights than its own, and none were given")
    if isinstance(scorer, tinker.TrainingClient):
        return await trainer_logprobs(scorer, traces)
    return await sampler_logprobs(scorer, traces)


async def trainer_logprobs(client: tinker.TrainingClient, traces: Sequence[Trace]) -> list[Array]:
    """log π of every target under the weights that learn, as they are now; each of shape (N,)."""
    if not traces:
        return []
    output = await client.forward([_blank(trace) for trace in traces], "cross_entropy")
    return [_finite(np.asarray(one["logprobs"].to_numpy(), np.float64)) for one in output.loss_fn_outputs]


async def sampler_logprobs(sampler: tinker.SamplingClient, traces: Sequence[Trace]) -> list[Array]:
    """log π of every target under the weights of a sampling client; each of shape (N,)."""

    async def one(trace: Trace) -> Array:
        n_scored = trace.model_input.length - _first_learned(trace)
        scores = await sampler.compute_logprobs(whole_input(trace), prompt_logprobs_last_n=n_scored)
        return _finite(np.array([np.nan if score is None else score for score in scores[1:]], np.float64))

    return [*await asyncio.gather(*(one(trace) for trace in traces))]


def _first_learned(trace: Trace) -> int:
    # What stands before the first answer is the same in a whole group, so the server has it in its cache.
    return int(np.argmax(trace.learned)) if trace.learned.any() else 0


def _blank(trace: Trace) -> tinker.Datum:
    """Weights of zero: it is asked for the outputs alone."""
    return tinker.Datum(
        model_input=trace.model_input,
        loss_fn_inputs={
            "target_tokens": tinker.TensorData.from_numpy(trace.targets),
            "weights": tinker.TensorData.from_numpy(np.zeros(len(trace.targets), np.float32)),
        },
    )


def _finite(row: Array) -> Array:
    # Places of images and of what was not asked for; none of them is ever learned from.
    return np.where(np.isfinite(row), row, 0.0)

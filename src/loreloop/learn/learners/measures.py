"""What a step of learning from rewards tells about itself. Pure functions; names begin with `train_`.

The numbers to watch: rewards and how many groups have none to tell apart, how far sampler and trainer are from each
other, how much is clipped, how long answers are, and how old.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import tinker
from numpy.typing import NDArray

from loreloop.learn.advantages import is_flat
from loreloop.learn.learners.policy import Scored
from loreloop.learn.rollouts.collect import Played
from loreloop.learn.rollouts.values import Rollout

Array = NDArray[np.float64]
Metrics = dict[str, float]


def of_rollouts(played: Sequence[Played], step: int) -> Metrics:
    """What was sampled: rewards with their parts, lengths, ages, failures. `train_entropy` is the mean of −log p of the
    sampled tokens, an unbiased estimate of the policy's entropy a token."""
    groups = [one.group for one in played]
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    graded = [rollout for group in groups for rollout in group.graded]
    rewards = [rollout.reward for rollout in graded]
    flat = [is_flat([rollout.reward for rollout in group.graded]) for group in groups if group.graded]
    logprobs = [logprob for rollout in graded for turn in rollout.answers for logprob in turn.logprobs]
    ages = [step - revision for rollout in graded for turn in rollout.answers for revision in turn.revisions]
    return {
        "train_reward_mean": _mean(rewards),
        "train_reward_std": float(np.std(rewards)) if rewards else 0.0,
        **_parts(graded),
        "train_flat_groups": _mean(flat),
        "train_answer_tokens": _mean([rollout.n_sampled for rollout in rollouts]),
        "train_turns": _mean([len(rollout.answers) for rollout in rollouts]),
        "train_cut_off": _mean([not rollout.ended for rollout in rollouts]),
        "train_entropy": -_mean(logprobs),
        "train_staleness_mean": _mean(ages),
        "train_staleness_max": float(max(ages, default=0)),
        "train_failed": float(sum(group.n_failed for group in groups)),
        "train_ungraded": float(len(rollouts) - len(graded)),
    }


def of_pass(data: Sequence[tinker.Datum], output: tinker.ForwardBackwardOutput, config: Mapping[str, float]) -> Metrics:
    """What the pass says, over tokens with an advantage: `train_kl_sampler` is the mean of log μ − log π, where μ drew
    the tokens (or the trainer's weights before the step, where those were asked for), and `train_ratio_max` the
    largest |log π/μ|. `train_clip_fraction` counts tokens beyond the loss's bounds."""
    apart = []
    for datum, out in zip(data, output.loss_fn_outputs, strict=True):
        inputs = {name: tensor.to_numpy() for name, tensor in datum.loss_fn_inputs.items()}
        # Only where the loss looked: elsewhere stand zeros in place of log-probabilities.
        learned = inputs["advantages"] != 0
        apart.append((out["logprobs"].to_numpy().astype(np.float64) - inputs["logprobs"])[learned])
    differences = np.concatenate(apart) if apart else np.zeros(0)
    found = {
        "train_loss": float(output.metrics.get("loss:sum", 0.0)),
        "train_kl_sampler": -_mean(differences),
        "train_ratio_max": float(np.abs(differences).max()) if differences.size else 0.0,
    }
    if config:
        # Both bounds are counted, though a clip acts on one side only, by the sign of the advantage.
        ratios = np.exp(differences)
        beyond = (ratios < config["clip_low_threshold"]) | (ratios > config["clip_high_threshold"])
        found["train_clip_fraction"] = _mean(beyond)
    return found


def of_trainer(scored: Sequence[Scored]) -> Metrics:
    """How far the trainer's weights, asked before the step, are from those that sampled."""
    known = [(one.trace.logprobs - one.trainer)[one.trace.learned] for one in scored if one.trainer is not None]
    differences = np.concatenate(known) if known else np.zeros(0)
    if not differences.size:
        return {}
    return {"train_kl_sampler": _mean(differences), "train_ratio_max": float(np.abs(differences).max())}


def _parts(rollouts: Sequence[Rollout]) -> Metrics:
    names = sorted({name for rollout in rollouts for name in rollout.parts})
    # A part that an episode lacks counts as 0 there, so that means over different tasks stay comparable.
    return {f"train_part_{name}": _mean([rollout.parts.get(name, 0.0) for rollout in rollouts]) for name in names}


def _mean(values: Sequence[float] | Array | NDArray[np.bool_]) -> float:
    return float(np.mean(values)) if len(values) else 0.0

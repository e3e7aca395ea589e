"""Small rollouts with made-up numbers, for tests of what is computed from them."""

import numpy as np
import tinker

from loreloop.learn.learners.policy import Scored
from loreloop.learn.rollouts.traces import Trace, traces_of
from loreloop.learn.rollouts.values import Observed, Rollout, Sampled


def sampled(*tokens: int, reward: float = 0.0, logprob: float = -1.0, revision: int = 0) -> Sampled:
    n = len(tokens)
    return Sampled(tokens, tuple(logprob - 0.1 * i for i in range(n)), (revision,) * n, reward=reward)


def rollout(*turns: Observed | Sampled, reward: float = 0.0, prompt: tuple[int, ...] = (1, 2, 3), **more) -> Rollout:
    return Rollout(tinker.ModelInput.from_ints(list(prompt)), turns or (sampled(4, 5),), reward, **more)


def trace(*turns: Observed | Sampled, reward: float = 0.0, **more) -> Trace:
    (only,) = traces_of(rollout(*turns, reward=reward, **more))
    return only


def scored(*turns: Observed | Sampled, reward: float = 0.0, **known) -> Scored:
    return Scored(trace(*turns, reward=reward), **known)


def tensor(datum: tinker.Datum, name: str) -> np.ndarray:
    return datum.loss_fn_inputs[name].to_numpy()


def shifted(row: Trace, by: float) -> np.ndarray:
    """Log-probabilities of other weights, `by` nats above those of sampling time."""
    return row.logprobs.astype(np.float64) + by

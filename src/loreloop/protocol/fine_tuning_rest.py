"""Bodies of OpenAI's fine-tuning API, with the bounds of their numbers. A field that is not here is refused by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from loreloop.protocol.openai_rest import ResponseFormat, Strict

Auto = Literal["auto"]
Epochs = Annotated[int, Meta(ge=1, le=50)]
BatchSize = Annotated[int, Meta(ge=1, le=256)]
Multiplier = Annotated[float, Meta(gt=0, le=100)]
Beta = Annotated[float, Meta(gt=0, le=2)]
Interval = Annotated[int, Meta(ge=1, le=1_000_000)]
Compute = Annotated[float, Meta(gt=0, le=16)]


class SupervisedHyperparameters(Strict, frozen=True):
    """Of a job on examples to imitate."""

    n_epochs: Auto | Epochs | None = None
    batch_size: Auto | BatchSize | None = None
    learning_rate_multiplier: Auto | Multiplier | None = None


class DpoHyperparameters(Strict, frozen=True):
    """Of a job on preferences; `beta` is the weight of staying near the model of the start."""

    n_epochs: Auto | Epochs | None = None
    batch_size: Auto | BatchSize | None = None
    learning_rate_multiplier: Auto | Multiplier | None = None
    beta: Auto | Beta | None = None


class ReinforcementHyperparameters(Strict, frozen=True):
    """Of a job with a grader. `compute_multiplier` multiplies the answers drawn for each task, `eval_interval` counts
    steps between two evaluations, and `eval_samples` answers to each of their tasks. Not OpenAI's:
    `max_completion_tokens`, of one answer, and `budget_tokens`, sampled tokens after which the job ends."""

    n_epochs: Auto | Epochs | None = None
    batch_size: Auto | BatchSize | None = None
    learning_rate_multiplier: Auto | Multiplier | None = None
    compute_multiplier: Auto | Compute | None = None
    eval_interval: Auto | Interval | None = None
    eval_samples: Auto | Annotated[int, Meta(ge=1, le=64)] | None = None
    reasoning_effort: Literal["default", "low", "medium", "high"] | None = None
    max_completion_tokens: Auto | Annotated[int, Meta(ge=1, le=32_768)] | None = None
    budget_tokens: Annotated[int, Meta(ge=1, le=1_000_000_000_000)] | None = None


class Supervised(Strict, frozen=True):
    """The method `supervised`."""

    hyperparameters: SupervisedHyperparameters | None = None


class Dpo(Strict, frozen=True):
    """The method `dpo`."""

    hyperparameters: DpoHyperparameters | None = None


class Reinforcement(Strict, frozen=True):
    """The method `reinforcement`; the grader's own form is looked at where graders are known."""

    grader: dict[str, Any]
    hyperparameters: ReinforcementHyperparameters | None = None
    response_format: ResponseFormat | None = None


class Method(Strict, frozen=True):
    """How to learn; of the three fields the one named by `type` counts."""

    type: Literal["supervised", "dpo", "reinforcement"]
    supervised: Supervised | None = None
    dpo: Dpo | None = None
    reinforcement: Reinforcement | None = None


class CreateJob(Strict, frozen=True):
    """`hyperparameters` is the older form of a supervised `method`."""

    model: str
    training_file: str
    validation_file: str | None = None
    method: Method | None = None
    hyperparameters: SupervisedHyperparameters | None = None
    suffix: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    seed: Annotated[int, Meta(ge=0, lt=1 << 31)] | None = None
    metadata: (
        Annotated[dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]], Meta(max_length=16)]
        | None
    ) = None
    integrations: tuple[Any, ...] | None = None


Hyperparameters = SupervisedHyperparameters | DpoHyperparameters | ReinforcementHyperparameters


def asked_of(hyperparameters: Hyperparameters | None) -> dict[str, Any]:
    """What a request says of hyperparameters, by name; those that it leaves out are missing."""
    if hyperparameters is None:
        return {}
    return {name: value for name, value in msgspec.structs.asdict(hyperparameters).items() if value is not None}

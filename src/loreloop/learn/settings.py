"""What each way to learn can be told beside the plan of its run. A struct's docstring and its fields' descriptions are
what the command line shows.

Values only, so that the command line and the jobs know every option without loading a learner.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

LARGE = 1 << 31
Beta = Annotated[float, Meta(gt=0, le=10, description="How strictly the model holds to where the run began.")]


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of one way to learn."""


class SftSettings(Settings, frozen=True):
    """Learn to say what examples say, from a file of chats.

    Each line is `{"messages": […], "tools": […]}` as OpenAI has it. What is learned are the assistant's turns; one of
    weight 0 is read only.
    """


class DpoSettings(Settings, frozen=True):
    """Learn from pairs of answers, one of which was preferred.

    Each line is OpenAI's (`input`, `preferred_output`, `non_preferred_output`) or TRL's (`prompt`, `chosen`,
    `rejected`).
    """

    beta: Beta = 0.1
    label_smoothing: Annotated[
        float, Meta(ge=0, lt=0.5, description="The share of pairs taken to be marked wrongly.")
    ] = 0.0


class KtoSettings(Settings, frozen=True):
    """Learn from single answers that were wanted or not.

    Each line is TRL's: `prompt`, `completion`, and `label`, which is true or false.
    """

    beta: Beta = 0.1
    wanted_weight: (
        Annotated[float, Meta(gt=0, le=100, description="λ of wanted answers; by default both kinds count the same.")]
        | None
    ) = None
    unwanted_weight: Annotated[float, Meta(gt=0, le=100, description="λ of unwanted answers.")] | None = None


class RewardSettings(Settings, frozen=True):
    """What all ways to learn from rewards can be told."""

    grader: Annotated[str, Meta(description="A grader: a file with OpenAI's JSON, or that JSON itself.")] | None = None
    tools: Annotated[
        str,
        Meta(description="What the model may call before it answers: none, calculator, python, or mcp:NAME."),
    ] = "none"
    environment: (
        Annotated[str, Meta(description="One with tasks and rewards of its own: shop, shapes, or puzzles:NAME.")] | None
    ) = None
    environment_options: Annotated[str, Meta(description="What that one can be told, as a JSON object.")] = "{}"
    tasks: Annotated[int, Meta(ge=1, le=1_000_000, description="How many tasks it makes to learn from.")] = 256
    eval_tasks: Annotated[int, Meta(ge=0, le=100_000, description="How many it makes to look at.")] = 32
    group_size: Annotated[int, Meta(ge=1, le=1024, description="Answers to each task.")] = 8
    answer_tokens: Annotated[int, Meta(ge=1, lt=LARGE, description="The most tokens of an answer.")] = 256
    episode_tokens: (
        Annotated[int, Meta(ge=1, lt=LARGE, description="The most tokens of all answers of an episode.")] | None
    ) = None
    turns: Annotated[int, Meta(ge=1, le=1000, description="The most answers of an episode with tools.")] = 8
    temperature: Annotated[float, Meta(gt=0, le=10, description="Of the answers that are learned from.")] = 1.0
    eval_samples: Annotated[
        int, Meta(ge=1, le=64, description="Answers to each held-out task; a single one is the likeliest.")
    ] = 1
    staleness: Annotated[int, Meta(ge=0, le=64, description="Steps by which tokens may be older than the weights.")] = 0
    piece: (
        Annotated[int, Meta(ge=1, lt=LARGE, description="Tokens after which an answer goes on with newer weights.")]
        | None
    ) = None
    overtaking: Annotated[bool, Meta(description="Let a step learn from whichever groups have ended first.")] = False
    at_once: Annotated[int, Meta(ge=1, lt=LARGE, description="The most answers that are sampled at once.")] = 512
    budget_tokens: (
        Annotated[int, Meta(ge=1, lt=LARGE, description="Sampled tokens after which the run pauses.")] | None
    ) = None
    normalisation: Annotated[
        Literal["tokens", "answers", "sum"], Meta(description="Over what the tokens' gradients are averaged.")
    ] = "tokens"
    kl: Annotated[float, Meta(ge=0, le=100, description="Strength of the pull to where the run began.")] = 0.0
    kl_form: Annotated[Literal["square", "k3"], Meta(description="The form of that pull.")] = "square"
    kl_reference: (
        Annotated[str, Meta(description="A base model or tinker:// path to pull to, in place of where the run began.")]
        | None
    ) = None
    kl_budget: (
        Annotated[float, Meta(gt=0, description="Nats a token that the pull's strength is steered to.")] | None
    ) = None
    kl_most: (
        Annotated[float, Meta(gt=0, description="Nats a token beyond which the run pauses; needs --kl-budget.")] | None
    ) = None


class CorrectedSettings(RewardSettings, frozen=True):
    """Those that weigh tokens which other weights drew."""

    correction: Annotated[
        Literal["auto", "none", "truncate", "icepop", "geometric"],
        Meta(description="How the ratio to the sampler is bounded; auto: truncate where a sampler outside draws."),
    ] = "auto"
    correction_low: Annotated[float, Meta(ge=0, description="The lower bound, if not the rule's own.")] | None = None
    correction_high: Annotated[float, Meta(gt=0, description="The upper bound, if not the rule's own.")] | None = None


class GrpoSettings(CorrectedSettings, frozen=True):
    """Learn from graded answers, compared with others to the same task (GRPO).

    Each line is `{"messages": […]}` with whatever else the grader reads. DAPO:
    `--clip-high 0.28 --overlong-buffer N --resample N`.
    """

    clip_low: Annotated[float, Meta(gt=0, le=1, description="How far a ratio may fall.")] = 0.2
    clip_high: Annotated[float, Meta(gt=0, le=100, description="How far it may rise.")] = 0.2
    scaled: Annotated[bool, Meta(description="Divide by the standard deviation of a group.")] = True
    skip_flat: Annotated[bool, Meta(description="Leave out groups in which all earned the same.")] = True
    resample: Annotated[
        int, Meta(ge=0, le=4096, description="The most groups of a step drawn anew, if all in them earned the same.")
    ] = 0
    overlong_buffer: Annotated[
        int, Meta(ge=0, lt=LARGE, description="Last tokens of an answer that cost more and more; 0: none.")
    ] = 0
    passes: Annotated[int, Meta(ge=1, le=16, description="Passes over the same answers.")] = 1


class PpoSettings(CorrectedSettings, frozen=True):
    """Learn from graded answers, with a value of every token that a second adapter learns (PPO).

    Each line is `{"messages": […]}` with whatever else the grader reads.
    """

    clip: Annotated[float, Meta(gt=0, le=1, description="How far a ratio may move from 1.")] = 0.2
    gamma: Annotated[float, Meta(ge=0, le=1, description="What a token later is worth.")] = 1.0
    lam: Annotated[float, Meta(ge=0, le=1, description="From one token's surprise (0) to all that follow (1).")] = 0.95
    low: Annotated[float, Meta(description="The least that an episode can earn.")] = 0.0
    high: Annotated[float, Meta(description="The most that an episode can earn.")] = 1.0
    value_rate: Annotated[float, Meta(gt=0, le=1, description="The learning rate of the value adapter.")] = 1e-4
    passes: Annotated[int, Meta(ge=1, le=16, description="Passes over the same answers.")] = 1


class CispoSettings(CorrectedSettings, frozen=True):
    """Learn from graded answers with bounded weights and every token's gradient (CISPO).

    Each line is `{"messages": […]}` with whatever else the grader reads.
    """

    low: Annotated[float, Meta(ge=0, description="The least weight.")] = 0.0
    high: Annotated[float, Meta(gt=0, description="The largest weight.")] = 4.0
    scaled: Annotated[bool, Meta(description="Divide by the standard deviation of a group.")] = True
    passes: Annotated[int, Meta(ge=1, le=16, description="Passes over the same answers.")] = 1


class ReinforceSettings(CorrectedSettings, frozen=True):
    """Learn from graded answers by the plain policy gradient (REINFORCE).

    Each line is `{"messages": […]}` with whatever else the grader reads.
    """

    correction: Annotated[
        Literal["auto", "none", "truncate", "icepop", "geometric"],
        Meta(description="How the ratio to the sampler is bounded; auto: truncate where a sampler outside draws."),
    ] = "truncate"
    scaled: Annotated[bool, Meta(description="Divide by the standard deviation of a group.")] = False


class DistillSettings(RewardSettings, frozen=True):
    """Learn from a teacher's opinion of the model's own answers (on-policy distillation).

    Each line is `{"messages": […]}`. The teacher needs the same tokenizer.
    """

    teacher: (
        Annotated[str, Meta(description="A base model, or a tinker:// path, that both have the tokenizer of.")] | None
    ) = None
    strength: Annotated[float, Meta(gt=0, le=100, description="A factor of the teacher's opinion.")] = 1.0
    reward_weight: Annotated[float, Meta(ge=0, le=100, description="A factor of the grader's.")] = 0.0


class HindsightSettings(Settings, frozen=True):
    """Learn from what came after answers: complaints, errors, corrections.

    Each line is `{"prompt": …, "completion": …, "outcome": "…"}`.
    """

    most: Annotated[float, Meta(gt=0, le=100, description="The most nats that one token is moved by.")] = 5.0
    least: Annotated[float, Meta(ge=0, le=100, description="Fewer nats than these are left out.")] = 0.0


SETTINGS: Mapping[str, type[Settings]] = {
    "sft": SftSettings,
    "dpo": DpoSettings,
    "kto": KtoSettings,
    "grpo": GrpoSettings,
    "ppo": PpoSettings,
    "cispo": CispoSettings,
    "reinforce": ReinforceSettings,
    "distill": DistillSettings,
    "hindsight": HindsightSettings,
}

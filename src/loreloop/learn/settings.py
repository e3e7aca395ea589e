"""What each way to learn can be told beside the plan of its run. A struct's docstring and its fields' descriptions are
what the command line shows.

Values only, so that the command line and the jobs know every option without loading a learner.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

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


SETTINGS: Mapping[str, type[Settings]] = {"sft": SftSettings, "dpo": DpoSettings, "kto": KtoSettings}

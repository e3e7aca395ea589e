"""What a run is to do: the numbers that a plan is made for, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from loreloop.model.families.family import WeightNames
from loreloop.model.spec import DecoderSpec
from loreloop.protocol.errors import WrongSettings
from loreloop.protocol.training import ExpertForm, LoraSpec

# As it is published, where experts may be in 4 bits; all in bf16; all that may be packed in 4 bits.
Precision = Literal["published", "bf16", "int4"]


@dataclass(frozen=True)
class Base:
    """A model: its decoder, the names of its weights, and whether it is published with experts in 4 bits. What stands
    beside the decoder (a tower of images) is not counted."""

    name: str
    spec: DecoderSpec
    names: WeightNames
    packed_experts: bool


@dataclass(frozen=True)
class Wish:
    """A step of reinforcement learning: `batch` prompts with `group` answers of `response` tokens each; `context`
    tokens are prompt and answer together. Training goes by micro-batches of `rows`. `full`: all weights are trained,
    and no adapter. `kept`: a micro-batch keeps its activations for the way back, and computes none of them twice."""

    rank: int = 32
    context: int = 4096
    batch: int = 32
    group: int = 8
    response: int = 2048
    rows: int = 4096
    precision: Precision = "published"
    full: bool = False
    kept: bool = False
    experts: ExpertForm = "shared_outer"

    @property
    def prompt(self) -> int:
        """Tokens of a prompt."""
        return self.context - self.response

    @property
    def n_samples(self) -> int:
        """Answers of a step."""
        return self.batch * self.group

    @property
    def trained_rows(self) -> int:
        """Rows of a training pass: those of a prompt are computed once for its group."""
        return self.batch * (self.prompt + self.group * self.response)

    @property
    def lora(self) -> LoraSpec:
        """The adapter."""
        return LoraSpec(self.rank, 0, experts=self.experts)


def check_wish(base: Base, wish: Wish) -> None:
    """WrongSettings where the numbers do not fit together or to the model, with the field."""
    if wish.response >= wish.context:
        raise WrongSettings(
            f"--response {wish.response} leaves nothing of --context {wish.context} for a prompt; the context counts "
            "both."
        )
    if wish.context > base.spec.context_window:
        raise WrongSettings(
            f"--context {wish.context} is more than the {base.spec.context_window} tokens that {base.name} was made "
            "for."
        )
    if wish.rank > base.spec.d_model:
        raise WrongSettings(f"--rank {wish.rank} is more than {base.spec.d_model}, the width of {base.name}.")

"""What `auto` means: epochs and batch size by the number of examples, the rate by the model's family and width.

The rules are written here and in docs/learners.md. Plain arithmetic; knows no learner and no server.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from loreloop.protocol.errors import BadRequest
from loreloop.text.tokenizer_files import read_object

EPOCHS, MOST_EPOCHS = 3, 25
FEWEST_READ, MOST_READ = 100, 25_000  # examples over all epochs together, as OpenAI's service has it
STEPS, MOST_BATCH = 64, 32  # a run aims at no fewer steps than this
BASE_RATE, REFERENCE_WIDTH = 5e-4, 2000.0
# How the best rate falls with the width; measured by the makers of the Tinker cookbook for these two families.
EXPONENTS = {"llama": 0.781, "qwen": 0.0775}
# Of that rate. Imitation is what it was measured for; other methods move a model along differences between answers.
IMITATION, OTHERS = 1.0, 0.1


@dataclass(frozen=True)
class Shape:
    """Of a base model: its family by config.json's `model_type`, and the width of its layers."""

    family: str
    width: int


@dataclass(frozen=True)
class Asked:
    """Hyperparameters as they were asked for; None is `auto`. `multiplier` is a factor of the automatic rate."""

    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    multiplier: float | None = None


@dataclass(frozen=True)
class Chosen:
    """The same, all decided."""

    epochs: int
    batch_size: int
    learning_rate: float


def chosen(method: str, n_examples: int, folder: Path, asked: Asked) -> Chosen:
    """What was asked for, and for the rest the rules' values; `folder` is the base model's. BadRequest where the rate
    is automatic and the folder does not say how wide the model is."""
    epochs, rate = asked.epochs or auto_epochs(n_examples), asked.learning_rate
    if rate is None:
        rate = auto_rate(method, shape_of(folder)) * (1.0 if asked.multiplier is None else asked.multiplier)
    return Chosen(epochs=epochs, batch_size=asked.batch_size or auto_batch(n_examples, epochs), learning_rate=rate)


def auto_epochs(n_examples: int) -> int:
    """Three; more for a small file, so that 100 examples are read, and fewer for a large one, so that 25,000 are."""
    if n_examples * EPOCHS < FEWEST_READ:
        return min(MOST_EPOCHS, math.ceil(FEWEST_READ / max(1, n_examples)))
    return max(1, min(EPOCHS, MOST_READ // n_examples))


def auto_batch(n_examples: int, epochs: int) -> int:
    """The largest power of two with which the run has 64 steps, from 1 to 32."""
    room = n_examples * epochs / STEPS
    return 1 << int(math.log2(min(MOST_BATCH, max(1.0, room))))


def auto_rate(method: str, shape: Shape) -> float:
    """5e-4 · (2000 / width)^p for imitation by LoRA, with p of the family (Tinker cookbook, hyperparam_utils.py); p is
    0 for families that nobody has measured. A tenth of it for the other methods."""
    exponent = next((p for name, p in EXPONENTS.items() if name in shape.family), 0.0)
    share = IMITATION if method == "sft" else OTHERS
    return share * BASE_RATE * (REFERENCE_WIDTH / shape.width) ** exponent


def shape_of(folder: Path) -> Shape:
    """By the config.json of a model's folder; BadRequest where it names no width."""
    config = read_object(folder / "config.json")
    # A model that sees has its decoder's settings in an object of their own.
    text = config.get("text_config", config)
    width = text.get("hidden_size") if isinstance(text, dict) else None
    if not isinstance(width, int) or width < 1:
        raise BadRequest(f"{folder / 'config.json'} names no hidden_size; give a learning rate of your own.")
    return Shape(str(text.get("model_type", config.get("model_type", ""))), width)

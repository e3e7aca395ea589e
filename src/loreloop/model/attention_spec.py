"""The part of a decoder's shape that is about positions and what tokens see, and checks that all shapes share.

Plain numbers; a spec that no decoder can have is refused when it is made. Knows no file formats.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from loreloop.protocol.errors import BadRequest


def check_spec(what: str, conditions: Mapping[str, bool]) -> None:
    """BadRequest with those of the conditions, by their words, that do not hold."""
    # All broken conditions are named at once, so that a user mends a configuration in one go.
    if broken := [words for words, holds in conditions.items() if not holds]:
        raise BadRequest(f"The configuration describes no {what} that could be computed: {'; '.join(broken)}.")


def check_sizes(what: str, **sizes: int) -> None:
    """BadRequest where one is no whole number of 1 or more."""
    check_spec(
        # The bound is far above any real model. It makes a plain refusal of what would end as a failed allocation.
        what,
        {f"{name} is {size!r}": isinstance(size, int) and 0 < size < 1 << 40 for name, size in sizes.items()},
    )


def as_settings(name: str, value: Any) -> Mapping[str, Any]:
    """A part of a configuration that has names of its own; TypeError where it is something else."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} = {value!r}")
    return value


@dataclass(frozen=True)
class RopeSpec:
    """Rotary embedding: `theta` is the base; `llama3` and `yarn` scaling stretch low frequencies by `factor`.

    YaRN keeps what turns `beta_fast` times or more in the original window, stretches what turns `beta_slow` times or
    less, and multiplies queries and keys by `attention_factor`.

    `longrope` divides each frequency by its own number of `divisors`. With `sections` (time, rows, columns) a position
    has three numbers, and frequencies take them in turn. With `query_growth`, queries grow by that much times the
    logarithm of the number of first windows before them.
    """

    theta: float
    scaling: Literal["none", "linear", "llama3", "yarn", "longrope"] = "none"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context_window: int = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    whole_dimensions: bool = True  # YaRN's borders are rounded to whole dimensions
    sections: tuple[int, ...] = ()
    divisors: tuple[float, ...] = ()
    query_growth: float = 0.0

    def __post_init__(self) -> None:
        scalings = (self.factor, self.low_freq_factor, self.high_freq_factor, self.beta_fast, self.beta_slow)
        ratios = scalings + self.divisors
        check_spec(
            "rotary embedding",
            {
                f"its base {self.theta} is not above 1": 1 < self.theta < math.inf,
                f"its factors {ratios} are not above 0": all(0 < ratio < math.inf for ratio in ratios),
                "its two frequency factors are equal": self.low_freq_factor != self.high_freq_factor,
                f"its first window is {self.original_context_window}": self.original_context_window > 0,
                f"attention's factor is {self.attention_factor}": 0 < self.attention_factor < math.inf,
                f"it has sections {self.sections}, not three": not self.sections or len(self.sections) == 3,
                f"queries grow by {self.query_growth}": 0 <= self.query_growth < math.inf,
            },
        )


@dataclass(frozen=True)
class AttentionSpec:
    """What attention has beyond the plain causal form.

    `windows` (by layer, None where all is seen; empty: no layer has one) are how many tokens a query sees, itself among
    them. `local_rope` turns the layers that have a window, and those of `unturned` are not turned at all. Scores are
    q·k · `scale` (None: 1/√width), then `cap` · tanh(score / cap). With `sinks`, every head has a learned score that
    takes its share of the softmax and gives nothing.
    """

    windows: tuple[int | None, ...] = ()
    unturned: tuple[int, ...] = ()
    local_rope: RopeSpec | None = None
    scale: float | None = None
    cap: float | None = None
    sinks: bool = False

    def __post_init__(self) -> None:
        windows = [window for window in self.windows if window is not None]
        check_spec(
            "attention",
            {
                f"windows of {sorted(set(windows))} tokens": all(isinstance(w, int) and w > 0 for w in windows),
                f"its scores' scale is {self.scale}": self.scale is None or 0 < self.scale < math.inf,
                f"its scores' cap is {self.cap}": self.cap is None or 0 < self.cap < math.inf,
            },
        )

    def window(self, layer: int) -> int | None:
        """How many tokens a query of this layer sees; None: all before it."""
        return self.windows[layer] if self.windows else None


PLAIN_ATTENTION = AttentionSpec()

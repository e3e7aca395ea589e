"""How a model's makers would have its answers drawn: `generation_config.json`, as far as it means anything here.

transformers takes temperature, `top_p`, `top_k` and `min_p` from there where the file says `do_sample`, and the penalty
always. Knows no requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from loreloop.protocol.errors import BadRequest
from loreloop.text.tokenizer_files import read_object

FILE = "generation_config.json"


class GenerationConfig(msgspec.Struct, frozen=True):
    """What is read of the file; bounds are those of requests."""

    do_sample: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=10)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, lt=1 << 31)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(ge=0.01, le=100)] | None = None


DRAWING = ("temperature", "top_p", "top_k", "min_p")
DEFAULTED = (*DRAWING, "repetition_penalty")


def read_defaults(folder: Path) -> Mapping[str, float]:
    """Sampling parameters by name, where the model has defaults of its own; BadRequest that names the file."""
    try:
        config = msgspec.convert(read_object(folder / FILE), GenerationConfig)
    except msgspec.ValidationError as error:
        raise BadRequest(f"{folder / FILE} cannot be used: {error}.") from None
    names = DEFAULTED if config.do_sample else ("repetition_penalty",)
    return {name: value for name in names if (value := getattr(config, name)) is not None}

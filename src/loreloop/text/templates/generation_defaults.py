"""How a model's makers would have its answers drawn: `generation_config.json`, as far as it means anything here.

transformers takes temperature, `top_p`, `top_k` and `min_p` from there where the file says `do_sample`, and the penalty
always; what it does not take is not looked at. Knows no requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from loreloop.protocol.errors import BadRequest
from loreloop.text.tokenizer_files import read_object

FILE = "generation_config.json"


class GenerationConfig(msgspec.Struct, frozen=True):
    """What is taken of the file; bounds are those of requests."""

    temperature: Annotated[float, Meta(ge=0, le=10)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, lt=1 << 31)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(ge=0.01, le=100)] | None = None


class Drawing(msgspec.Struct, frozen=True):
    """A number is as true as transformers takes it for."""

    do_sample: bool | int | float | None = None


def whole(value: Any) -> Any:
    """Tools that know one kind of number alone write 50 as 50.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


DRAWING = ("temperature", "top_p", "top_k", "min_p")
DEFAULTED = (*DRAWING, "repetition_penalty")


def read_defaults(folder: Path) -> Mapping[str, float]:
    """Sampling parameters by name, where the model has defaults of its own; BadRequest that names the file."""
    stored = read_object(folder / FILE)
    try:
        draws = msgspec.convert({"do_sample": stored.get("do_sample")}, Drawing).do_sample
        names = DEFAULTED if draws else ("repetition_penalty",)
        config = msgspec.convert({name: whole(stored.get(name)) for name in names}, GenerationConfig)
    except msgspec.ValidationError as error:
        raise BadRequest(f"{folder / FILE} cannot be used: {error}.") from None
    return {name: value for name in names if (value := getattr(config, name)) is not None}

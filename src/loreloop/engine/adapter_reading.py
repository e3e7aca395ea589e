"""An adapter's folder, read by the processes of an engine: the first looks at all of it, each keeps what it holds.

Knows neither training nor sampling.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

import torch

from loreloop.formats.peft import fill_adapter, read_layout, read_lora_spec
from loreloop.model.lora import AdapterView
from loreloop.model.spec import DecoderSpec
from loreloop.parallel.adapter_share import AdapterShare
from loreloop.parallel.place import Place
from loreloop.protocol.training import LoraSpec

R = TypeVar("R", covariant=True)


class Read(Protocol[R]):
    """Reads this process's part of something, and where it `checks` looks at all of it."""

    def __call__(self, *, checks: bool) -> R:
        """What was read."""
        ...


def read_once(place: Place, read: Read[R]) -> R:
    """What `read` gives, on every process: the first, which checks, reads before the others. Where it fails it fails on
    all of them, as of `Place.by_first` and `Place.agreed`."""
    found: list[R] = []

    def first() -> bool:
        found.append(read(checks=True))
        return True

    place.by_first(first, bool)
    return place.agreed(lambda: found[0] if found else read(checks=False))


def read_share(
    folder: Path,
    spec: DecoderSpec,
    dtype: torch.dtype,
    place: Place,
    check: Callable[[LoraSpec], None] = lambda lora: None,
) -> tuple[AdapterShare, AdapterView]:
    """This process's numbers of the adapter of a folder, on the CPU; `check` may refuse the adapter's shape. Errors as
    of `read_adapter`."""

    def read(*, checks: bool) -> tuple[AdapterShare, AdapterView]:
        lora = read_lora_spec(folder)
        check(lora)
        if checks:
            read_layout(folder, spec)
        share = AdapterShare(spec, lora, place)
        mine = AdapterView(share.layout, torch.zeros(share.layout.size, dtype=dtype))
        fill_adapter(folder, share.whole_layout, mine, share.region, checks=checks)
        return share, mine

    return read_once(place, read)

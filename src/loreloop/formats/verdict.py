"""Whether a model would be served, and in how much memory, from its configuration alone; nothing is loaded.

The words of a refusal are those that `models add` gives, since both ask the same functions.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from loreloop.formats.adding import hub_config
from loreloop.formats.configuration import local_config, read_config_file, spec_of
from loreloop.formats.quantization import is_mxfp4
from loreloop.model.families.nearest import lacking, nearest
from loreloop.model.families.table import FAMILIES, family_of
from loreloop.model.packed_weights import packable
from loreloop.model.weights import Weight, decoder_weights
from loreloop.protocol.errors import BadRequest

TOKENS = 1000  # of a cache's size
SCALE_BITS = 16 / 32  # of a packed value, which shares its scale with 31 others


@dataclass(frozen=True)
class Verdict:
    """What `models check` says. `reason` is the refusal, empty where the model is served; sizes are in bytes, 0 where
    they are not known: of weights as bf16 and packed (`--quantize int4`), and of the cache of `TOKENS` tokens."""

    source: str
    model_type: str
    reason: str
    missing: tuple[str, ...]
    nearest: str
    n_bf16: int = 0
    n_packed: int = 0
    n_cache: int = 0

    @property
    def served(self) -> bool:
        """Whether a server would take it, as far as its configuration tells."""
        return not self.reason


def check(source: str) -> Verdict:
    """The verdict on a folder, a config.json or a hub id. BadRequest where there is no configuration to look at."""
    config, where = config_of(source)
    model_type = str(config.get("model_type"))
    try:
        spec = spec_of(config, where)
    except BadRequest as error:
        return Verdict(
            source=source,
            model_type=model_type,
            reason=error.message,
            missing=lacking(config),
            nearest=nearest(config, FAMILIES),
        )
    weights = list(decoder_weights(spec, family_of(config).names))
    floats = is_mxfp4(config.get("quantization_config") or {})
    return Verdict(
        source=source,
        model_type=model_type,
        reason="",
        missing=(),
        nearest=model_type,
        n_bf16=sum(_size(weight, packed=floats and ".experts." in weight.pieces[0].name) for weight in weights),
        n_packed=sum(_size(weight, packed=True) for weight in weights),
        n_cache=TOKENS * spec.n_layers * spec.cache.size * torch.bfloat16.itemsize,
    )


def memory_here() -> int:
    """The memory of this machine, in bytes: of its first GPU where there is one."""
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def config_of(source: str) -> tuple[dict[str, Any], str]:
    """The configuration in a folder, of a file or of a hub id, and what to call it. BadRequest where there is none."""
    if found := local_config(source):
        return found
    if source.count("/") != 1 or Path(source).exists():
        raise BadRequest(f"{source!r} is neither a model folder (with a config.json), nor a hub id (org/name).")
    try:
        return read_config_file(hub_config(source)), f"The config.json of {source}"
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise BadRequest(f"The configuration of {source!r} could not be downloaded: {error}") from None


def _size(weight: Weight, *, packed: bool) -> int:
    n_values = 1
    for size in weight.shape:
        n_values *= size
    starts = [piece.rows.start for piece in weight.pieces]
    if packed and weight.bits and packable(weight.shape, starts):
        return int(n_values * (weight.bits + SCALE_BITS) / 8)
    return n_values * (torch.float32 if weight.fp32 else torch.bfloat16).itemsize

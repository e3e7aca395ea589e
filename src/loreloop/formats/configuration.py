"""The configuration of a published folder, and the decoder that it describes.

Knows no tensor, so that whoever only asks what a model is does not wait for a library of tensors.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from loreloop.formats.quantization import check_quantization
from loreloop.model.attention_spec import as_settings
from loreloop.model.families.family import eos_ids
from loreloop.model.families.table import family_of
from loreloop.model.spec import DecoderSpec
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.json_files import read_json_object

# What comes of a configuration whose values are of other types than they should be.
MISSPELT = (ArithmeticError, LookupError, TypeError, ValueError)


def read_config_file(file: Path) -> dict[str, Any]:
    """A configuration by itself."""
    return read_json_object(file, f"{file.parent} is not a model folder: {file.name}")


def local_config(source: str) -> tuple[dict[str, Any], str] | None:
    """The configuration in a folder or of a file, and what to call it; None where there is no such file."""
    file = Path(source) / "config.json" if Path(source).is_dir() else Path(source)
    return (read_config_file(file), str(file)) if file.is_file() else None


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json`, with the stop ids that its text part and `generation_config.json` name besides."""
    config = read_config_file(folder / "config.json")
    generation = folder / "generation_config.json"
    of_generation = read_config_file(generation) if generation.exists() else {}
    try:
        text = as_settings("text_config", config.get("text_config") or {})
        named = [eos_ids(settings.get("eos_token_id")) for settings in (config, text, of_generation)]
        # The three files may name different ids, and a text ends with any of them; the order of their first naming is
        # kept.
        config["eos_token_id"] = list(dict.fromkeys(itertools.chain(*named)))
    except MISSPELT as error:
        raise BadRequest(f"{folder} is not a model folder: its configuration cannot be read ({error}).") from None
    return config


def read_spec(folder: Path) -> DecoderSpec:
    """The decoder that the folder's configuration describes. BadRequest where it cannot be read or is not supported."""
    return spec_of(read_config(folder), f"The config.json of {folder}")


def spec_of(config: dict[str, Any], source: str) -> DecoderSpec:
    """The decoder that a configuration describes; `source` is what an error calls it."""
    try:
        # Before the family looks: how weights are stored is a question of its own, and the clearer refusal.
        check_quantization(config)
        return family_of(config).spec(config)
    except MISSPELT as error:
        raise BadRequest(f"{source} lacks or misspells something: {error}.") from None

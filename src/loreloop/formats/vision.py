"""The vision part of a published folder: its rules, and its tower with the weights filled in, frozen.

The tower is transformers' own module, which is imported only where a model has one; nothing of the folder is executed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loreloop.formats.configuration import MISSPELT, read_config, read_spec
from loreloop.formats.load import check_finite
from loreloop.formats.stored_tensors import stream_tensors
from loreloop.model.families.family import SeeingFamily
from loreloop.model.families.table import family_of
from loreloop.model.tensor_names import VISION, own_name
from loreloop.model.tower import Tower, Vision
from loreloop.model.towers import tower_of
from loreloop.protocol.errors import BadRequest, outcome_of
from loreloop.protocol.images import FixedGrid, ImageRules

# Old checkpoints store what the configuration already says, and some transformers leave out one level of names.
IGNORED_SUFFIXES = ("position_ids", "rotary_pos_emb.inv_freq", "rotary_emb.inv_freq")
LEVEL = "vision_model."
CODE = ("attn_implementation", "experts_implementation", "use_kernels", "auto_map", "quantization_config")


def load_rules(folder: Path) -> ImageRules | None:
    """None for a model that takes text only."""
    config = read_config(folder)
    family = family_of(config)
    if not isinstance(family, SeeingFamily):
        return None
    try:
        return family.image_rules(config, _processor(folder))
    except MISSPELT as error:
        raise BadRequest(f"The image settings of {folder} lack or misspell something: {error}.") from None


def load_vision(folder: Path, *, dtype: torch.dtype, device: torch.device) -> Vision | None:
    """The rules and the frozen tower of a model that takes images; None for one that takes text only. BadRequest where
    the tower cannot be made, filled or run."""
    config, rules = read_config(folder), load_rules(folder)
    if rules is None:
        return None
    tower = outcome_of(partial(tower_of, _without_code(config)))  # of settings that cannot be, it raises anything
    if isinstance(tower, ImportError):
        raise BadRequest(
            f"{folder} is a vision model, whose tower comes from transformers; `pip install loreloop[vision]`."
        )
    if isinstance(tower, Exception):
        raise BadRequest(f"The vision_config of {folder} cannot be used: {tower}.")
    # Frozen like the decoder, and in evaluation mode: dropout would make an image's features random.
    tower.parts.requires_grad_(False).eval().to(device)
    for parameter in tower.parts.parameters():  # tables of angles stay fp32
        parameter.data = parameter.data.to(dtype)
    _fill(folder, tower)
    _try(folder, Vision(rules, tower), dtype, device)
    return Vision(rules, tower)


def _without_code(config: Any) -> Any:
    """The configuration without what would have the library load kernels or classes by name."""
    if not isinstance(config, dict):
        return config
    return {key: _without_code(value) for key, value in config.items() if not key.strip("_").startswith(CODE)}


def _try(folder: Path, vision: Vision, dtype: torch.dtype, device: torch.device) -> None:
    """Shows the tower a black image, so that settings which do not fit each other fail now and not at a request."""
    grid = vision.rules.grid
    height, width = (grid.height, grid.width) if isinstance(grid, FixedGrid) else [grid.token_pixels] * 2
    n_tokens = grid.n_tokens if isinstance(grid, FixedGrid) else 1
    with torch.no_grad():
        seen = outcome_of(lambda: vision.tower(torch.zeros(3, height, width, device=device)))
    if isinstance(seen, Exception):
        raise BadRequest(f"The vision tower of {folder} cannot be run: {seen}.")
    wanted = (n_tokens, read_spec(folder).d_model)
    if wrong := [tuple(x.shape) for x in (seen.embedding_ND, *seen.additions) if x.shape != wanted]:
        raise BadRequest(f"The vision tower of {folder} makes {wrong[0]} of an image where {wanted} is needed.")


def _processor(folder: Path) -> Mapping[str, Any]:
    """The image processor's settings, from either of the files in which they are published."""
    for file in (folder / "processor_config.json", folder / "preprocessor_config.json"):
        if file.exists():
            settings = json.loads(file.read_text())
            if isinstance(found := settings.get("image_processor", settings), dict) and "image_mean" in found:
                return found
    return {}


def _fill(folder: Path, tower: Tower) -> None:
    targets: dict[str, Tensor] = dict(tower.parts.state_dict(keep_vars=False))
    targets = {name: tensor for name, tensor in targets.items() if not name.endswith(IGNORED_SUFFIXES)}
    for published, read in stream_tensors(folder):
        name = own_name(published)
        if not name.startswith(VISION) or name.endswith(IGNORED_SUFFIXES):
            continue
        name = name.removeprefix(VISION)
        # Folders and versions of transformers disagree about one level of names, and whichever fits is meant.
        name = next((n for n in (name, _without_level(name), _with_level(name)) if n in targets), name)
        target = targets.pop(name, None)
        if target is None:
            raise BadRequest(f"The folder holds a tensor {published!r} that its vision tower has no place for.")
        tensor = read()
        if target.shape != tensor.shape:
            raise BadRequest(f"{published!r} has the shape {list(tensor.shape)}; it should be {list(target.shape)}.")
        check_finite(published, tensor)
        target.copy_(tensor)
    if targets:
        missing = sorted(targets)
        raise BadRequest(f"{folder} lacks {len(missing)} tensors of the vision tower, among them {missing[:5]}.")


def _without_level(name: str) -> str:
    return name.replace(f"tower.{LEVEL}", "tower.", 1)


def _with_level(name: str) -> str:
    return name.replace("tower.", f"tower.{LEVEL}", 1)

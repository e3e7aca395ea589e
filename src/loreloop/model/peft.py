"""Adapters as PEFT folders: `adapter_model.safetensors` and `adapter_config.json`, both ways.

Published names, one A (R, I) and one B (O, R) a projection. An adapter made for another base is refused with names
and shapes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from loreloop.model.lora import ALPHA, UNEMBED, AdapterView, LoraLayout
from loreloop.model.spec import DecoderSpec
from loreloop.model.tensor_file import write_tensors
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.training import LoraSpec

PREFIX = "base_model.model.model"
UNEMBED_NAMES = (f"{PREFIX}.unembed_tokens", "base_model.model.lm_head")
WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"


def named_tensors(view: AdapterView) -> Iterator[tuple[str, Tensor]]:
    """Every matrix of an adapter under its published name; views, not copies."""
    layout = view.layout
    for (layer, site), place in layout.places.items():
        a_PRI = view.a(layer, site)
        for index, (part, b_OR) in enumerate(zip(place.shape.parts, view.b(layer, site), strict=True)):
            name = UNEMBED_NAMES[0] if site == UNEMBED else f"{PREFIX}.layers.{layer}.{part.name}"
            yield f"{name}.lora_A.weight", a_PRI[index * layout.rank : (index + 1) * layout.rank]
            yield f"{name}.lora_B.weight", b_OR


def write_adapter(folder: Path, view: AdapterView, base_model: str) -> int:
    """Writes the folder's two files; gives the bytes written. The caller makes the folder appear at once."""
    lora = view.layout.lora
    modules = sorted({name.split(".")[-3] for name, _ in named_tensors(view)})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": lora.rank,
        "lora_alpha": ALPHA,
        "target_modules": modules,
        "bias": "none",
        "loreloop": {
            "seed": lora.seed,
            "train_attn": lora.train_attn,
            "train_mlp": lora.train_mlp,
            "train_unembed": lora.train_unembed,
        },
    }
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=1))
    return write_tensors(folder / WEIGHTS_FILE, dict(named_tensors(view)))


def read_lora_spec(folder: Path) -> LoraSpec:
    """Rank and trained parts of an adapter folder, ours or another tool's."""
    try:
        config = json.loads((folder / CONFIG_FILE).read_text())
        rank = int(config["r"])
    except (OSError, ValueError, KeyError) as error:
        raise BadRequest(f"{folder} is not an adapter folder: {CONFIG_FILE} cannot be read ({error}).") from None
    if config.get("lora_alpha", ALPHA) != ALPHA:
        raise BadRequest(f"The adapter in {folder} has lora_alpha {config['lora_alpha']}; only {ALPHA:g} is served.")
    own = config.get("loreloop")
    if own:
        return LoraSpec(rank, own["seed"], own["train_attn"], own["train_mlp"], own["train_unembed"])
    modules = set(config.get("target_modules", []))
    return LoraSpec(
        rank,
        0,
        train_attn=bool(modules & {"q_proj", "k_proj", "v_proj", "o_proj"}),
        train_mlp=bool(modules & {"gate_proj", "up_proj", "down_proj"}),
        train_unembed=bool(modules & {"unembed_tokens", "lm_head"}),
    )


def read_adapter(folder: Path, spec: DecoderSpec, dtype: torch.dtype) -> AdapterView:
    """The adapter of a folder as one flat vector in `dtype`; missing projections are zero."""
    layout = LoraLayout(spec, read_lora_spec(folder))
    view = AdapterView(layout, torch.zeros(layout.size, dtype=dtype))
    targets = dict(named_tensors(view))
    for kind in ("lora_A", "lora_B"):
        for other in UNEMBED_NAMES[1:]:
            own = targets.get(f"{UNEMBED_NAMES[0]}.{kind}.weight")
            if own is not None:
                targets[f"{other}.{kind}.weight"] = own
    try:
        with safe_open(str(folder / WEIGHTS_FILE), framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                _fill(targets, name, file.get_tensor(name), folder)
    except OSError as error:
        raise BadRequest(f"The adapter in {folder} cannot be read: {error}.") from None
    return view


def _fill(targets: dict[str, Tensor], name: str, tensor: Tensor, folder: Path) -> None:
    target = targets.get(name)
    if target is None:
        raise BadRequest(f"The adapter in {folder} holds {name!r}, for which the base model has no place.")
    if target.shape != tensor.shape:
        raise BadRequest(
            f"The adapter in {folder} was made for another base: {name!r} has the shape {list(tensor.shape)}, "
            f"here it must be {list(target.shape)}."
        )
    target.copy_(tensor)

"""Adapters as PEFT folders: `adapter_model.safetensors` and `adapter_config.json`, both ways.

Published names, one A (R, I) and one B (O, R) a projection. An adapter made for another base is refused with names
and shapes.

Legend: P parts of a site, R rank, I inputs, O outputs.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from torch import Tensor

from loreloop.formats.tensor_file import open_tensors, write_stream
from loreloop.model.lora import ALPHA, UNEMBED, AdapterView, LoraLayout, outline
from loreloop.model.lora_region import WHOLE, Matrix, Region
from loreloop.model.spec import DecoderSpec
from loreloop.protocol.checksums import FileSum, check_files, sum_of_bytes
from loreloop.protocol.errors import BadRequest, FilesGone, reading_trouble
from loreloop.protocol.training import LoraSpec

PREFIX = "base_model.model"
UNEMBED_NAMES = (f"{PREFIX}.lm_head", f"{PREFIX}.model.unembed_tokens")  # peft's, and the hosted service's
EXPERTS = ".mlp.experts."
STACKED_EXPERTS = "LORELOOP_STACKED_EXPERTS"
WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"


def named_matrices(layout: LoraLayout) -> Iterator[tuple[str, Matrix, slice]]:
    """The published name of every projection's A and B, the matrix that it lies in, and which of its rows it is."""
    for (layer, site), place in layout.places.items():
        for index, part in enumerate(place.shape.parts):
            name = UNEMBED_NAMES[0] if site == UNEMBED else f"{PREFIX}.{layout.spec.module}.layers.{layer}.{part.name}"
            # The stacked A is taken apart again: published adapters have one A for each projection.
            rows = slice(index * layout.rank, (index + 1) * layout.rank)
            yield f"{name}.lora_A.weight", Matrix(layer, site, "a"), rows
            yield f"{name}.lora_B.weight", Matrix(layer, site, "b", index), slice(None)


def named_tensors(view: AdapterView) -> Iterator[tuple[str, Tensor]]:
    """Every matrix of an adapter under its published name; views, not copies."""
    for name, matrix, rows in named_matrices(view.layout):
        yield name, view.at(matrix)[..., rows, :]


def write_adapter(folder: Path, view: AdapterView, base_model: str, *, durable: bool = True) -> dict[str, FileSum]:
    """Writes the folder's two files; gives their checksums by name. The caller makes the folder appear at once.

    peft loads the folder as it is. Experts are kept stacked, which peft has no place for and would drop without a word;
    so a folder with experts names a kind of adapter that peft does not know, and is refused by it.
    """
    return write_adapter_stream(folder, outline(view.layout, view.flat.dtype), [view], base_model, durable=durable)


def write_adapter_stream(
    folder: Path, whole: AdapterView, views: Iterable[AdapterView], base_model: str, *, durable: bool = True
) -> dict[str, FileSum]:
    """As `write_adapter`, of an adapter that comes some sites at a time, in order; `whole` is its outline."""
    lora, layout = whole.layout.lora, whole.layout
    # As they lie: what comes is written in one piece.
    tensors = dict(_as_they_lie(whole))
    modules = sorted({target_module(layout.spec, name) for name in tensors})
    config = {
        "peft_type": STACKED_EXPERTS if any(EXPERTS in name for name in tensors) else "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": lora.rank,
        "lora_alpha": ALPHA,
        "target_modules": modules,
        "bias": "none",
        # What peft has no key for. Its presence also tells our own folders from those of other tools.
        "loreloop": {
            "seed": lora.seed,
            "train_attn": lora.train_attn,
            "train_mlp": lora.train_mlp,
            "train_unembed": lora.train_unembed,
            "experts": lora.experts,
        },
    }
    settings = json.dumps(config, indent=1).encode()
    # Written from the bytes whose checksum is noted, so that the two cannot differ.
    (folder / CONFIG_FILE).write_bytes(settings)
    stream = map(_tensors_as_they_lie, views)
    weights = write_stream(folder / WEIGHTS_FILE, tensors, stream, durable=durable)
    return {CONFIG_FILE: sum_of_bytes(settings), WEIGHTS_FILE: weights}


def _as_they_lie(view: AdapterView) -> list[tuple[str, Tensor]]:
    return sorted(named_tensors(view), key=lambda item: item[1].storage_offset())


def _tensors_as_they_lie(view: AdapterView) -> list[Tensor]:
    return [tensor for _, tensor in _as_they_lie(view)]


def target_module(spec: DecoderSpec, name: str) -> str:
    """What a matrix's projection is called among the targets: by its last name, or, beside a vision tower whose
    projections have the same names, by its whole path."""
    path = name.removeprefix(f"{PREFIX}.").rsplit(".", 2)[0]
    return path if path.startswith(f"{spec.module}.layers.") and spec.module != "model" else path.rsplit(".", 1)[-1]


def is_own(folder: Path) -> bool:
    """Whether this server wrote the folder; another tool's goes by way of `formats.adopt`."""
    return bool(read_peft_config(folder).get("loreloop"))


def read_lora_spec(folder: Path) -> LoraSpec:
    """Rank and trained parts of a folder that `write_adapter` wrote."""
    check_files(folder, (CONFIG_FILE,))
    config = read_peft_config(folder)
    rank = config.get("r")
    if not isinstance(rank, int) or rank < 1:
        raise BadRequest(f"The adapter in {folder} has the rank {rank!r}; a rank is a number, 1 or more.")
    # Our own folders always have one alpha; another one means that somebody has changed the file.
    if config.get("lora_alpha") != ALPHA:
        raise BadRequest(
            f"The adapter in {folder} has lora_alpha = {config.get('lora_alpha')!r}; it was written as {ALPHA}."
        )
    if not config.get("loreloop"):
        raise BadRequest(f"The adapter in {folder} is another tool's; `loreloop models import-adapter` takes it over.")
    try:
        return msgspec.convert({**config["loreloop"], "rank": rank}, LoraSpec)
    except (TypeError, msgspec.ValidationError) as error:
        raise BadRequest(f"The adapter in {folder} has a wrong {CONFIG_FILE}: loreloop: {error}.") from None


def read_peft_config(folder: Path) -> dict[str, Any]:
    """`adapter_config.json` as it stands. Gone where the folder is gone, OutOfService where it cannot be read just now,
    BadRequest where it is no adapter's."""
    try:
        config = json.loads((folder / CONFIG_FILE).read_text())
    except (OSError, ValueError, RecursionError) as error:
        # A full table of open files is trouble of this machine and passes; the adapter must not be called damaged for
        # it.
        if trouble := reading_trouble(error, folder / CONFIG_FILE):
            raise trouble from None
        if not folder.exists():
            raise FilesGone(f"The files of the adapter in {folder} are gone.") from None
        raise BadRequest(f"{folder} is not an adapter folder: {CONFIG_FILE} cannot be read ({error}).") from None
    if not isinstance(config, dict):
        raise BadRequest(f"{folder} is not an adapter folder: {CONFIG_FILE} is no JSON object.")
    return config


@contextlib.contextmanager
def open_weights(folder: Path) -> Iterator[Any]:
    """The safetensors reader of an adapter's weights. BadRequest where they are missing or damaged."""
    try:
        with open_tensors(folder / WEIGHTS_FILE) as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise BadRequest(f"The adapter in {folder} cannot be read: {error}.") from None


def read_adapter(folder: Path, spec: DecoderSpec, dtype: torch.dtype) -> AdapterView:
    """The adapter of a folder that `write_adapter` wrote, as one flat vector in `dtype`.

    Gone where its files are not what the list of checksums beside them says, if there is one.
    """
    layout = read_layout(folder, spec)
    # One vector is allocated and its views are filled, so that the adapter is never in memory twice.
    view = AdapterView(layout, torch.zeros(layout.size, dtype=dtype))
    fill_adapter(folder, layout, view, lambda matrix: WHOLE)
    return view


def read_layout(folder: Path, spec: DecoderSpec) -> LoraLayout:
    """Where the numbers of a folder's adapter lie, once its files have been looked at; as of `read_adapter`."""
    check_files(folder, (WEIGHTS_FILE,))
    layout = LoraLayout(spec, read_lora_spec(folder))
    if not layout.size:
        raise BadRequest(f"The adapter in {folder} names no projection of this {spec.family} model.")
    return layout


def fill_adapter(
    folder: Path, whole: LoraLayout, mine: AdapterView, region: Callable[[Matrix], Region], *, checks: bool = True
) -> None:
    """Fills a part of an adapter from a folder, of each matrix that it has a region. Only where all of the file
    `checks` are numbers looked at that are not part of it."""
    shapes = dict(named_tensors(outline(whole, torch.float32)))
    matrices = {name: matrix for name, matrix, _ in named_matrices(whole)}
    targets, missing = dict(named_tensors(mine)), set(shapes)
    with open_weights(folder) as file:
        for published in file.keys():  # noqa: SIM118 (not a dict)
            name = published.replace(UNEMBED_NAMES[1], UNEMBED_NAMES[0])  # as it was called before
            if name not in shapes:
                raise BadRequest(f"The adapter in {folder} holds {name!r}, for which the base model has no place.")
            shape = shapes[name].shape
            stored = file.get_slice(published)
            if list(shape) != stored.get_shape():
                raise BadRequest(
                    f"The adapter in {folder} was made for another base: {name!r} has the shape {stored.get_shape()}, "
                    f"here it must be {list(shape)}."
                )
            if checks:
                stored = file.get_tensor(published)
                # NaN in one adapter would show only as nonsense in answers, long after it was loaded.
                if not bool(torch.isfinite(stored).all()):
                    raise BadRequest(f"The adapter in {folder} holds NaN or infinite values in {name!r}.")
            if name in targets:
                for piece in region(matrices[name]).pieces(stacked=len(shape) > 2):
                    targets[name][piece.mine].copy_(stored[piece.whole])
            missing.discard(name)
            del stored  # or it would still be there while the next one is read
    if missing:
        raise BadRequest(f"The adapter in {folder} was made for another base: it lacks {min(missing)!r}.")

"""An adapter leaves home: as a folder that peft loads beside the published model, or merged into it.

peft keeps the experts of a layer in two parameters, and their adapters in one A and one B each: a gate and an up share
a product there, so the adapter of both has twice the rank, with zeros where one does not concern the other. Merging
streams: a tensor comes in, ΔW = 32/r · B · A is added in fp32, and it goes out in its own dtype.

Legend: E experts, I inputs, O outputs, R rank.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from loreloop.formats.adopt import open_adapter
from loreloop.formats.checksums import NOTE
from loreloop.formats.configuration import read_config, read_config_file
from loreloop.formats.folders import TEMPLATES
from loreloop.formats.gguf_out import write_gguf
from loreloop.formats.mxfp4 import stacked_weights
from loreloop.formats.peft import (
    CONFIG_FILE,
    EXPERTS,
    PREFIX,
    WEIGHTS_FILE,
    named_tensors,
    target_module,
)
from loreloop.formats.published import dense_tensors
from loreloop.formats.shards import SHARD_BYTES, ShardWriter
from loreloop.formats.stacked_experts import inputs_first, unstacked
from loreloop.formats.stored_tensors import stored_tensors
from loreloop.formats.tensor_file import write_stream
from loreloop.model.families.table import family_of
from loreloop.model.lora import ALPHA, UNEMBED, AdapterView, LoraLayout, outline
from loreloop.model.tensor_names import own_name
from loreloop.model.weights import Weight, decoder_weights
from loreloop.protocol.checksums import FileSum, sum_of_bytes
from loreloop.protocol.errors import BadRequest

EXPERT_PARAMETERS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
SETTINGS = (".json", ".jinja", ".model", ".txt")
Delta = Callable[[], Tensor]


def export_peft(folder: Path, view: AdapterView, base_model: str) -> dict[str, FileSum]:
    """Fills `folder` with an adapter in peft's own arrangement; gives the checksums of its files."""
    views = (view.part(part) for part in export_parts(view.layout))
    return export_peft_stream(folder, outline(view.layout, view.flat.dtype), views, base_model)


def export_parts(layout: LoraLayout) -> Iterator[LoraLayout]:
    """The sites of an adapter in the order in which its export has them: the experts of a layer come together, and
    behind all that is not of experts."""
    layers = [layer for layer, site in layout.places if site == "experts.down"]
    yield from (layout.part([key]) for key in layout.places if not key[1].startswith("experts."))
    yield from (layout.part([(layer, "experts.gate_up"), (layer, "experts.down")]) for layer in layers)


def export_peft_stream(
    folder: Path, whole: AdapterView, views: Iterable[AdapterView], base_model: str
) -> dict[str, FileSum]:
    """As `export_peft`, of an adapter that comes in `export_parts`; `whole` is its outline."""
    rank, layout = whole.layout.rank, whole.layout
    names = [name for name, _ in named_tensors(whole) if EXPERTS not in name]
    modules = {name: target_module(layout.spec, name) for name in names}
    targets: dict[str, object] = {"target_modules": sorted(set(modules.values()))}
    if any(site == "experts.down" for _, site in layout.places):
        # peft takes the names of dense projections in such a model for those of experts, unless asked by parameter.
        paths = {name: name.rpartition(".layers.")[2].rsplit(".", 2)[0].partition(".")[2] for name in names}
        dense = {f"{path}.weight" for path in paths.values() if path.startswith("mlp.")}
        wide = EXPERT_PARAMETERS[0]
        targets = {
            "target_modules": sorted({modules[name] for name in names if ".mlp." not in name}) or None,
            "target_parameters": [*EXPERT_PARAMETERS, *sorted(dense)],
            "rank_pattern": {wide: 2 * rank},
            "alpha_pattern": {wide: 2 * ALPHA},
        }
    config: dict[str, object] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": rank,
        "lora_alpha": ALPHA,
        "bias": "none",
    }
    settings = json.dumps(config | targets, indent=1).encode()
    (folder / CONFIG_FILE).write_bytes(settings)
    outlines = dict(item for part in export_parts(layout) for item in _exported(whole.part(part)))
    weights = write_stream(folder / WEIGHTS_FILE, outlines, map(_tensors_exported, views))
    return {CONFIG_FILE: sum_of_bytes(settings), WEIGHTS_FILE: weights}


def _exported(view: AdapterView) -> Iterator[tuple[str, Tensor]]:
    """One of `export_parts`, under peft's names."""
    experts = [layer for layer, site in view.layout.places if site == "experts.down"]
    return _expert_tensors(view, experts[0]) if experts else named_tensors(view)


def _tensors_exported(view: AdapterView) -> Iterator[Tensor]:
    return (tensor for _, tensor in _exported(view))


def _expert_tensors(view: AdapterView, layer: int) -> Iterator[tuple[str, Tensor]]:
    rank, n_experts = view.layout.rank, view.a(layer, "experts.down").shape[0]
    gate_EOR, up_EOR = view.b(layer, "experts.gate_up")
    # The zeros keep the gate's ranks from the up's outputs and the other way round.
    both_EOR = gate_EOR.new_zeros(n_experts, 2 * gate_EOR.shape[1], 2 * rank)
    both_EOR[:, : gate_EOR.shape[1], :rank] = gate_EOR
    both_EOR[:, gate_EOR.shape[1] :, rank:] = up_EOR
    moe = view.layout.spec.moe
    if moe is not None and moe.by_turns:
        both_EOR = both_EOR.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
    (down_EOR,) = view.b(layer, "experts.down")
    # peft wraps the parameters of a module one in another, the second outermost.
    outer = f"{PREFIX}.{view.layout.spec.module}.layers.{layer}.mlp.experts"
    pairs = {
        f"{outer}.base_layer": (view.a(layer, "experts.gate_up"), both_EOR),
        outer: (view.a(layer, "experts.down"), down_EOR),
    }
    for name, (a_ERI, b_EOR) in pairs.items():
        # A matrix that is common to all experts is repeated, since peft knows only one for each.
        a_ERI, b_EOR = a_ERI.expand(n_experts, -1, -1), b_EOR.expand(n_experts, -1, -1)
        yield f"{name}.lora_A.weight", a_ERI.flatten(0, 1)
        yield f"{name}.lora_B.weight", b_EOR.permute(1, 2, 0).flatten(1)


def merge(source: Path, target: Path, view: AdapterView, shard_bytes: int = SHARD_BYTES) -> None:
    """Fills `target` with the published model of `source`, dequantised, plus the adapter."""
    deltas = dict(_deltas(source, view))
    spec, names = view.layout.spec, family_of(read_config(source)).names
    # An adapter of the unembedding changes the head alone, so a tied model gets a head of its own.
    unties = spec.tie_embeddings and names.head in deltas
    _copy_settings(source, target, untied=unties or not spec.tie_embeddings)
    stored = {own_name(name) for name, _ in stored_tensors(source)}
    turned = inputs_first(stored_tensors(source), spec)
    writer = ShardWriter(target, shard_bytes)
    for published, read in dense_tensors(source):
        name = own_name(published)
        if unties and name == names.head:
            if names.embedding in stored:  # a copy of it
                continue
            name = published = names.embedding  # of the two that are one, a folder may store either
        tensor = read()
        if unties and name == names.embedding:
            writer.add(names.head, _plus(tensor.clone(), deltas.pop(names.head)))
        tensor = tensor.clone()  # what is read may be the file's own memory
        # What was packed is put together with its inputs first, whatever the rest of the folder has.
        for part, piece in unstacked(name, tensor, spec, names, inputs_first=turned or bool(stacked_weights(stored))):
            _plus(piece, deltas.pop(part, None))
        writer.add(published, tensor)
    if deltas:
        raise BadRequest(f"{source} lacks {len(deltas)} weights that the adapter changes, among them {min(deltas)!r}.")
    writer.close()


def _copy_settings(source: Path, target: Path, *, untied: bool) -> None:
    """Configuration, tokenizer and template; other weights, in whatever form, would not be the merged ones."""
    for file in source.iterdir():
        weights = file.name.endswith(".index.json") or file.name in (CONFIG_FILE, NOTE)
        if file.is_file() and file.suffix in SETTINGS and not weights:
            shutil.copyfile(file, target / file.name)
    if (source / TEMPLATES).is_dir():
        shutil.copytree(source / TEMPLATES, target / TEMPLATES)
    config = read_config_file(source / "config.json")
    for part in (config, config.get("text_config")):
        if part is not None:
            # What is written is dense, and a loader that believed the old setting would look for packed parts.
            part.pop("quantization_config", None)
            if untied:
                part["tie_word_embeddings"] = False
    (target / "config.json").write_text(json.dumps(config, indent=1))


def _plus(weight: Tensor, delta: Delta | None) -> Tensor:
    """The weight, changed in its place."""
    return weight if delta is None else weight.copy_(weight.float() + delta())


def _deltas(source: Path, view: AdapterView) -> Iterator[tuple[str, Delta]]:
    """What is to be added to which published tensor."""
    layout, names = view.layout, family_of(read_config(source)).names
    for weight in decoder_weights(layout.spec, names):
        site = _site(weight)
        if site is not None and layout.has(site.layer, site.name):
            for part, piece in enumerate(weight.pieces):
                yield piece.name, _delta(view, site, part)
    if layout.has(layout.spec.n_layers, UNEMBED):
        yield names.head, _delta(view, _Site(layout.spec.n_layers, UNEMBED), 0)


@dataclass(frozen=True)
class _Site:
    """Where an adapter changes a weight; `expert` is the number of one of several."""

    layer: int
    name: str
    expert: int | None = None


def _site(weight: Weight) -> _Site | None:
    """The adapter's site that a weight belongs to."""
    layer, _, name = weight.role.partition(".")
    if not layer.isdigit() or weight.role.endswith(".bias"):
        return None
    expert, _, part = name.partition(".")
    return _Site(int(layer), f"experts.{part}", int(expert)) if expert.isdigit() else _Site(int(layer), name)


def _delta(view: AdapterView, site: _Site, part: int) -> Delta:
    rank, scale = view.layout.rank, view.layout.scale
    a_RI, b_OR = view.a(site.layer, site.name), view.b(site.layer, site.name)[part]
    if site.expert is not None:
        # A matrix that is common to all experts is the only one of its stack.
        a_RI, b_OR = a_RI[min(site.expert, len(a_RI) - 1)], b_OR[min(site.expert, len(b_OR) - 1)]
    a_RI = a_RI[part * rank : (part + 1) * rank]
    # Computed only when its tensor comes by, so that one ΔW is in memory at a time.
    return lambda: scale * (b_OR.float() @ a_RI.float())


def export(source: Path, adapter: Path, target: Path, form: str, base_model: str) -> None:
    """Writes `target` in one of the three forms; it appears when it is complete."""
    if target.exists():
        raise BadRequest(f"{target} exists already; name a new place.")
    view = open_adapter(adapter, source)
    target.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".exporting-", dir=target.absolute().parent) as scratch:
        staging = Path(scratch, "folder")
        staging.mkdir()
        if form == "peft":
            export_peft(staging, view, base_model)
        else:
            merge(source, staging, view)
        if form == "gguf":
            file = Path(scratch, "model.gguf")
            write_gguf(staging, file)
            staging = file
        # Within one folder, so that the export appears whole or not at all.
        staging.rename(target)

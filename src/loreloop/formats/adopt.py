"""Takes over adapters that other tools made: a folder of peft's becomes one of our flat vectors, equal in effect.

Ranks may differ from module to module, ours is the largest of them; scales go into B, since ours is always 32 / rank.
Numbers that nobody has trained yet, be it a projection or a row beyond a module's own rank, are as in a fresh adapter:
A at random and B zero, which changes nothing and can be trained further. What cannot be taken over is refused by name.

Legend: E experts, I inputs, O outputs, R rank, K singular values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from loreloop.formats.configuration import read_config, read_spec
from loreloop.formats.load import read_stored_spec
from loreloop.formats.peft import (
    EXPERTS,
    PREFIX,
    UNEMBED_NAMES,
    is_own,
    named_tensors,
    open_weights,
    read_adapter,
    read_peft_config,
)
from loreloop.formats.peft_config import PeftSettings, read_settings
from loreloop.formats.published import some_tensors
from loreloop.model.families.table import family_of
from loreloop.model.lora import ALPHA, AdapterView, LoraLayout, Part, init_flat
from loreloop.model.spec import DecoderSpec
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.training import ExpertForm, LoraSpec

FUSED = {"gate_up_proj": ("w1", "w3"), "down_proj": ("w2",)}  # peft's parameters of experts, and ours
HEAD = "lm_head"


@dataclass(frozen=True)
class _Factors:
    """One module's B · A, (R, I) and (O, R), over experts (E or 1, R, I) and (E or 1, O, R), and what they are
    multiplied by."""

    a: Tensor
    b: Tensor
    scale: float

    @property
    def rank(self) -> int:
        return self.a.shape[-2]


def open_adapter(folder: Path, base: Path) -> AdapterView:
    """The adapter of a folder, ours or another tool's, over the model of the folder `base`, in fp32."""
    spec = read_stored_spec(base)
    return read_adapter(folder, spec, torch.float32) if is_own(folder) else _adopted(folder, base, spec)


def _adopted(folder: Path, base: Path, spec: DecoderSpec) -> AdapterView:
    where = f"The adapter in {folder}"
    settings = read_settings(read_peft_config(folder), where)
    # Each step takes the tensors it understands out of this dictionary, so what is left has no place here.
    tensors = {_path(name): tensor for name, tensor in _read(folder)}
    tensors = _without_copies(tensors, base, where)
    factors = dict(_plain(tensors, settings, spec, where)) | dict(_experts(tensors, settings, spec, where))
    if tensors:
        raise BadRequest(f"{where} holds {min(tensors)!r}, for which the base model has no place.")
    if not factors:
        raise BadRequest(f"{where} changes neither attention nor feed-forwards nor the unembedding.")
    if settings.initialisation != "plain":
        factors = _undone(factors, settings, base, where)
    return _laid_out(factors, spec, where)


def _read(folder: Path) -> Iterator[tuple[str, Tensor]]:
    with open_weights(folder) as file:
        for name in file.keys():  # noqa: SIM118 (not a dict)
            tensor = file.get_tensor(name)
            tensor = tensor.float() if ".lora_" in name else tensor  # a copy is compared in its own dtype
            if not bool(torch.isfinite(tensor).all()):
                raise BadRequest(f"The adapter in {folder} holds NaN or infinite values in {name!r}.")
            yield name, tensor


def _path(name: str) -> str:
    """A tensor's name as a path in the base; the hosted service calls the unembedding by another name."""
    path = name.removeprefix(f"{PREFIX}.")
    return path.replace(UNEMBED_NAMES[1].removeprefix(f"{PREFIX}."), HEAD, 1)


def _without_copies(tensors: dict[str, Tensor], base: Path, where: str) -> dict[str, Tensor]:
    """peft saves the embeddings of the base along with an adapter of the unembedding. Equal copies say nothing."""
    # Only embeddings may come as plain weights; anything else of that kind is refused by the caller as having no place.
    copies = {
        name: name.replace(".base_layer", "")
        for name in tensors
        if name.endswith("weight") and ".lora_" not in name and name.replace(".base_layer", "") in _embeddings(base)
    }
    if not copies:
        return tensors
    names = family_of(read_config(base)).names
    stored = some_tensors(base, (names.embedding, names.head))
    for name, published in copies.items():
        either = (names.head, names.embedding) if published.startswith(HEAD) else (names.embedding, names.head)
        weight = next(stored[name] for name in either if name in stored)  # where both are one, a base may store either
        if not torch.equal(weight.to(tensors[name].dtype), tensors[name]):  # False for other shapes, too
            raise BadRequest(
                f"{where} holds a changed {published!r}; embeddings trained in full are not served. Merge the adapter "
                "into its base and add that as a model."
            )
    return {name: tensor for name, tensor in tensors.items() if name not in copies}


def _embeddings(base: Path) -> tuple[str, str]:
    module = read_spec(base).module
    return f"{module}.embed_tokens.weight", f"{HEAD}.weight"


def _plain(
    tensors: dict[str, Tensor], settings: PeftSettings, spec: DecoderSpec, where: str
) -> Iterator[tuple[str, _Factors]]:
    """The factors of linear layers, taken out of `tensors`."""
    for path in _linear_layers(spec):
        key = settings.key_of(path) or (HEAD if path == HEAD and settings.targets("model.unembed_tokens") else None)
        pair = [tensors.pop(f"{path}.lora_{letter}.weight", None) for letter in "AB"]
        # Settings and tensors must agree: either alone would mean that a part of the adapter is lost.
        if pair == [None, None] and key is None:
            continue
        a_RI, b_OR = pair
        if a_RI is None or b_OR is None:
            raise BadRequest(f"{where} lacks the matrices of {path!r}, which its target_modules name.")
        if key is None:
            raise BadRequest(f"{where} holds matrices of {path!r}, which its target_modules do not name.")
        rank = settings.rank_of(key)
        if a_RI.dim() != 2 or b_OR.dim() != 2 or a_RI.shape[0] != rank or b_OR.shape[1] != rank:
            raise BadRequest(
                f"{where} has for {path!r} matrices of the shapes {list(a_RI.shape)} and {list(b_OR.shape)}; "
                f"the rank is {rank} there."
            )
        yield path, _Factors(a_RI, b_OR, settings.scale_of(key))


def _linear_layers(spec: DecoderSpec) -> list[str]:
    # The layout of an adapter that trains everything names all linear layers there are.
    full = LoraLayout(spec, LoraSpec(1, 0))
    names = [f"{spec.module}.layers.{layer}.{part.name}" for layer, part in _parts(full) if layer < spec.n_layers]
    return [name for name in names if EXPERTS not in name] + [HEAD]


def _parts(layout: LoraLayout) -> Iterator[tuple[int, Part]]:
    for (layer, _), place in layout.places.items():
        for part in place.shape.parts:
            yield layer, part


def _experts(
    tensors: dict[str, Tensor], settings: PeftSettings, spec: DecoderSpec, where: str
) -> Iterator[tuple[str, _Factors]]:
    """The factors of routed experts: stacked as the hosted service keeps them, or fused as peft does."""
    for layer in range(spec.n_layers):
        outer = f"{spec.module}.layers.{layer}.mlp.experts"
        for part in ("w1", "w2", "w3"):
            pair = [tensors.pop(f"{outer}.{part}.lora_{letter}.weight", None) for letter in "AB"]
            if (pair[0] is None) != (pair[1] is None):
                raise BadRequest(f"{where} holds only one of the matrices of {outer}.{part}.")
            if pair[0] is not None and pair[1] is not None:
                path, rank = f"{outer}.{part}", settings.rank_of(f"{outer}.{part}")
                if pair[0].shape[-2:-1] != (rank,) or pair[1].shape[-1:] != (rank,):
                    raise BadRequest(f"{where} has for {path!r} matrices that are not of the rank {rank}.")
                yield path, _Factors(pair[0], pair[1], settings.scale_of(path))
        yield from _fused_experts(tensors, settings, spec, outer, where)


def _fused_experts(
    tensors: dict[str, Tensor], settings: PeftSettings, spec: DecoderSpec, outer: str, where: str
) -> Iterator[tuple[str, _Factors]]:
    """peft's arrangement: the parameters of a module are wrapped one in another, the first innermost."""
    named = [name for name in FUSED if settings.targets_parameter(f"{outer}.{name}")]
    for index, name in enumerate(named):
        # The later a parameter is named, the further outside it stands in peft's wrapping.
        inner = ".base_layer" * (len(named) - 1 - index)
        path, pair = f"{outer}.{name}", [tensors.pop(f"{outer}{inner}.lora_{x}.weight", None) for x in "AB"]
        if pair[0] is None and pair[1] is None and not spec.routes(int(outer.split(".")[-3])):
            continue
        if pair[0] is None or pair[1] is None or spec.moe is None:
            raise BadRequest(f"{where} lacks the matrices of {path!r}, which its target_parameters name.")
        rank, n = settings.rank_of(path), spec.moe.n_experts
        if pair[0].shape[0] != n * rank or pair[1].shape[1] != n * rank:
            raise BadRequest(f"{where} has for {path!r} not {n} experts of the rank {rank}.")
        a_ERI = pair[0].unflatten(0, (n, rank))
        # In peft's B the experts are the faster axis, in A the slower one.
        b_EOR = pair[1].unflatten(1, (rank, n)).permute(2, 0, 1)
        if spec.moe.by_turns and name == "gate_up_proj":
            b_EOR = b_EOR.unflatten(1, (-1, 2)).transpose(1, 2).flatten(1, 2)
        for part, b_part in zip(FUSED[name], b_EOR.chunk(len(FUSED[name]), dim=1), strict=True):
            used = b_part.abs().amax(dim=(0, 1)) > 0  # our own exports fill up with zeros
            # An adapter whose B is still zero has been trained nowhere; its A is kept whole, as it may be trained
            # further.
            used = used if bool(used.any()) else torch.ones_like(used)
            yield f"{outer}.{part}", _Factors(a_ERI[:, used], b_part[..., used], settings.scale_of(path))


def _undone(factors: Mapping[str, _Factors], settings: PeftSettings, base: Path, where: str) -> dict[str, _Factors]:
    """An adapter without what its initialisation moved from the base weights into it.

    peft takes the first values of B · A out of the base, and does so again whenever it loads the adapter. Here the base
    stays as it is, so those first values, which follow from its weights, are taken out of the adapter.

    W − s·B₀A₀ + s·BA = W + s · [B | −B₀] · [A; A₀], of twice the rank.
    """
    if any(EXPERTS in f".{path}." for path in factors):
        raise BadRequest(f"{where} begins with {settings.initialisation} on experts, which cannot be undone here.")
    family, module = family_of(read_config(base)), read_spec(base).module
    names = {path: _weight_name(path, family.names.head, module) for path in factors}
    weights = some_tensors(base, (*names.values(), family.names.embedding))
    undone = {}
    for path, each in factors.items():
        weight = weights.get(names[path], weights.get(family.names.embedding) if path == HEAD else None)
        if weight is None:
            raise BadRequest(f"{where} begins with {settings.initialisation}, and the base lacks {names[path]!r}.")
        a_RI, b_OR = _first_values(weight.float(), settings, path)
        undone[path] = _Factors(torch.cat([each.a, a_RI]), torch.cat([each.b, -b_OR], dim=1), each.scale)
    return undone


def _weight_name(path: str, head: str, module: str) -> str:
    return head if path == HEAD else f"{path.replace(module, 'model', 1)}.weight"


def _first_values(weight_OI: Tensor, settings: PeftSettings, path: str) -> tuple[Tensor, Tensor]:
    """A₀ and B₀: the largest singular parts of the weight (PiSSA), or the first of its QR decomposition (OLoRA)."""
    rank, scale = settings.rank_of(path), settings.scale_of(path)
    if settings.initialisation == "pissa":
        # In the same precision and by the same decomposition as peft, or the first values would not cancel out.
        u_OK, s_K, v_KI = torch.linalg.svd(weight_OI, full_matrices=False)
        return v_KI[:rank], u_OK[:, :rank] * (s_K[:rank] / scale)
    q_OK, r_KI = torch.linalg.qr(weight_OI)
    return r_KI[:rank], q_OK[:, :rank]


def _laid_out(factors: Mapping[str, _Factors], spec: DecoderSpec, where: str) -> AdapterView:
    layout = LoraLayout(spec, _lora_of(factors))
    # Begun as a fresh adapter, so that what the other tool did not train can be trained here.
    view = AdapterView(layout, init_flat(layout, 0))
    targets = dict(named_tensors(view))
    for path, each in factors.items():
        name = f"{PREFIX}.{path}"
        try:
            target_a, target_b = targets[f"{name}.lora_A.weight"], targets[f"{name}.lora_B.weight"]
        except KeyError:
            raise BadRequest(f"{where} holds matrices of {path!r}, for which the base model has no place.") from None
        rows_a, rows_b = target_a[..., : each.rank, :], target_b[..., : each.rank]
        if rows_a.shape != each.a.shape or rows_b.shape != each.b.shape:
            raise BadRequest(
                f"{where} was made for another base: {path!r} has the shapes {list(each.a.shape)} and "
                f"{list(each.b.shape)}, here they must be {list(rows_a.shape)} and {list(rows_b.shape)}."
            )
        rows_a.copy_(each.a)
        # The other tool's scale, divided by ours, goes into B: the product is then the same at our fixed scale.
        rows_b.copy_(each.b * (each.scale * layout.rank / ALPHA))
        if not bool(torch.isfinite(rows_b).all()):
            raise BadRequest(f"{where} has for {path!r} an α of which its matrices become infinite.")
    return view


def _lora_of(factors: Mapping[str, _Factors]) -> LoraSpec:
    stacked = [each for path, each in factors.items() if EXPERTS in f".{path}."]
    # One matrix on either side that is common to all experts makes it the shared-outer form.
    alone = all(len(each.a) > 1 and len(each.b) > 1 for each in stacked) and bool(stacked)
    form: ExpertForm = "per_expert" if alone else "shared_outer"
    return LoraSpec(
        rank=max(each.rank for each in factors.values()),
        seed=0,
        train_attn=any(".self_attn." in path for path in factors),
        train_mlp=any(".mlp." in path for path in factors),
        train_unembed=HEAD in factors,
        experts=form,
    )

"""A published folder (config.json, safetensors) → a `Decoder`, streamed tensor by tensor into its place.

Fused weights are allocated once and their parts copied in, so that host memory holds the model and one tensor more.
Missing, extra and wrongly shaped tensors are refused by name; nothing in the folder is ever executed.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from loreloop.formats.compressed import Collector, is_packed_part, published_packed
from loreloop.formats.configuration import read_config, read_spec
from loreloop.formats.held_parts import Held
from loreloop.formats.mxfp4 import BLOCKS, SCALES, MxCollector, stacked_weights
from loreloop.formats.published import some_tensors
from loreloop.formats.quantized_blocks import Blocks, read_blocks
from loreloop.formats.rooms import Room, Rooms
from loreloop.formats.stacked_experts import expert_names, inputs_first, unstacked
from loreloop.formats.stored_tensors import Stored, stored_tensors, stream_tensors
from loreloop.formats.weight_files import BLOCKS_FILE, has_blocks
from loreloop.model.assemble import Parts, assemble
from loreloop.model.decoder import Decoder
from loreloop.model.families.family import Family, SeeingFamily
from loreloop.model.families.table import family_of
from loreloop.model.linear import Products
from loreloop.model.mx_weights import MxCodes
from loreloop.model.packed_weights import PackedWeight, packable
from loreloop.model.spec import DecoderSpec
from loreloop.model.tensor_names import VISION, own_name
from loreloop.model.weights import Piece, Weight, decoder_weights
from loreloop.protocol.errors import BadRequest

IGNORED_SUFFIXES = ("rotary_emb.inv_freq",)  # old checkpoints store what the configuration already says


def read_stored_spec(folder: Path) -> DecoderSpec:
    """The decoder of a folder that holds weights. A configuration which says that embedding and head are one is not
    believed where the folder stores two that differ; transformers does not believe it either."""
    spec, names = read_spec(folder), family_of(read_config(folder)).names
    both = {names.embedding, names.head}
    if spec.tie_embeddings and both <= {own_name(name) for name, _ in stored_tensors(folder)}:
        embedding, head = map(some_tensors(folder, both).__getitem__, (names.embedding, names.head))
        # Compared in the wider dtype, since a copy that was saved in another dtype is still a copy.
        wide = torch.promote_types(embedding.dtype, head.dtype)
        return dataclasses.replace(spec, tie_embeddings=torch.equal(embedding.to(wide), head.to(wide)))
    return spec


def load_decoder(
    folder: Path, *, dtype: torch.dtype, device: torch.device, products: Products, quantize: bool = False
) -> Decoder:
    """The model of `folder` in `dtype` on `device`; with `quantize`, its matrices packed into 4 bits, and embedding and
    head into 8: by the model's own blocks where it has them, else rounded."""
    spec, weights = load_weights(folder, dtype=dtype, device=device, quantize=quantize)
    return assemble(Parts(spec, weights, dtype, products))


def load_weights(
    folder: Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
    quantize: bool = False,
    held: Callable[[DecoderSpec], Held] | None = None,
) -> tuple[DecoderSpec, dict[str, Tensor | PackedWeight]]:
    """What `load_decoder` makes a model of: its spec, and its weights by role. Where `held` gives, for the spec, what
    this process holds of each weight, those are the weights, and of plain ones nothing else is read."""
    spec, own_blocks = read_stored_spec(folder), quantize and has_blocks(folder)
    packing = (OWN_BLOCKS if own_blocks else ROUNDED) if quantize else None
    return spec, _filled(folder, spec, Rooms(held(spec) if held else None, dtype, device), packing)


def check_weights(folder: Path) -> None:
    """BadRequest, as when they are loaded, where tensors are missing, extra, wrongly shaped, damaged or not finite.
    Reads every tensor once, and keeps none."""
    # On the meta device nothing is allocated, yet every check is the one that loading makes.
    _filled(folder, read_stored_spec(folder), Rooms(None, torch.bfloat16, torch.device("meta")), None)


def _filled(
    folder: Path, spec: DecoderSpec, rooms: Rooms, packing: _Packing | None
) -> dict[str, Tensor | PackedWeight]:
    """The decoder's weights by role."""
    family, stored = family_of(read_config(folder)), {own_name(name) for name, _ in stored_tensors(folder)}
    places = _Places(spec, family, rooms, packing, stored)
    # Blocks go first, and the dequantised tensors of the same weights are then skipped without being read.
    for name, blocks in read_blocks(folder) if packing == OWN_BLOCKS else ():
        places.put_blocks(name, blocks)
    collector, turned = Collector(), inputs_first(stored_tensors(folder), spec)
    floats = MxCollector(stacked_weights(stored))
    for name, read in decoder_tensors(folder):
        if places.passes_over(_weights_of(name, spec, family)):
            continue
        if (weight := floats.weight_of(name)) is not None:
            if (codes := floats.add(name, read)) is not None:
                for expert, part, rows in expert_names(weight, spec, family.names):
                    places.put_floats(part, codes[expert][rows])
        elif is_packed_part(name):
            if found := collector.add(name, read):
                places.put_blocks(*found)
        elif name not in places.packed and not (isinstance(read, Stored) and places.read(name, read)):
            for part, tensor in unstacked(name, read(), spec, family.names, inputs_first=turned):
                places.put(part, tensor)
    # Nothing is assembled before everything has its numbers: empty tensors hold whatever memory held before.
    collector.check_complete()
    floats.check_complete()
    places.check_complete(folder)
    return rooms.weights


def _weights_of(name: str, spec: DecoderSpec, family: Family) -> list[str]:
    """Whose numbers a tensor holds, where it is a part of a packed weight or a stack of several; else none."""
    if is_packed_part(name):
        return [name.rpartition("_")[0]]
    stack = name.removesuffix(BLOCKS).removesuffix(SCALES)
    if stack.endswith("_bias"):
        return []  # small, and under other names
    return [part for _, part, _ in expert_names(stack, spec, family.names)]


def decoder_tensors(folder: Path) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Those of the folder's tensors that are the decoder's, as its family calls them."""
    seeing = isinstance(family_of(read_config(folder)), SeeingFamily)
    for published, read in stream_tensors(folder):
        name = own_name(published)
        if name.startswith(VISION) and not seeing:
            yield published, read  # no decoder has a place for it
        elif not name.startswith(VISION) and not name.endswith(IGNORED_SUFFIXES):
            yield name, read


@dataclass(frozen=True)
class _Packing:
    """How weights are packed: the dtype of their scales, and whether 4-bit codes have offsets."""

    dtype: torch.dtype
    offsets: bool


READ_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
ADD_AGAIN = "Delete the folder and add the model again."
OWN_BLOCKS = _Packing(torch.float16, offsets=True)
ROUNDED = _Packing(torch.bfloat16, offsets=False)


def check_finite(name: str, tensor: Tensor) -> None:
    """BadRequest where a weight is no number, as flipped bits make some: the model would answer nonsense."""
    # Least and largest are found in a fraction of the time that a mask takes, and are NaN where one value is.
    if tensor.numel() and not all(bool(end.isfinite()) for end in tensor.aminmax()):
        n = int((~tensor.isfinite()).sum())
        raise BadRequest(f"{name!r} holds {n} values that are not finite numbers: the file is damaged, or no model's.")


def _check_dtype(name: str, tensor: Tensor) -> None:
    """BadRequest for what `copy_` would convert without its scales, integers and 8-bit floats: the model would answer
    nonsense."""
    if tensor.dtype not in READ_DTYPES:
        raise BadRequest(f"{name!r} is {tensor.dtype}, which is no weight by itself.")


@dataclass(frozen=True)
class _Target:
    """Where a published tensor goes."""

    room: Room
    piece: Piece

    @property
    def shape(self) -> tuple[int, ...]:
        """That the tensor must have."""
        return (self.piece.rows.stop - self.piece.rows.start, *self.room.weight.shape[1:])

    @property
    def packed(self) -> PackedWeight | None:
        """The place itself, where that is packed."""
        place = None if self.room.part or not self.room.is_wanted else self.room.of(self.piece)
        return place if isinstance(place, PackedWeight) else None


class _Places:
    """Rooms by role, and the map from published names to the rows they fill."""

    def __init__(
        self,
        spec: DecoderSpec,
        family: Family,
        rooms: Rooms,
        packing: _Packing | None,
        stored: Set[str],
    ) -> None:
        self.spec, self.rooms, self.packing = spec, rooms, packing
        self.dtype, self.device = rooms.dtype, rooms.device
        self.stored, self.published = stored, published_packed(stored)
        stacks = [expert_names(name, spec, family.names) for name in stacked_weights(stored)]
        self.floats = {part for stack in stacks for _, part, _ in stack}  # that come as MXFP4
        self.targets: dict[str, _Target] = {}
        self.unheld: set[str] = set()  # names of weights that have come, and of which this process holds nothing
        self.packed: set[str] = set()  # names of weights whose blocks have come
        self.embedding, self.tied_head = family.names.embedding, family.names.head if spec.tie_embeddings else None
        self.ignored = tuple(start.format(n_layers=spec.n_layers) for start in family.names.ignored)
        for weight in decoder_weights(spec, family.names):
            # Allocated once in its fused form, of which each piece fills its rows.
            make = functools.partial(self._whole, weight)
            room = rooms.room(weight, make, is_packed=rooms.held is not None and self._is_packed(weight))
            self.targets |= {piece.name: _Target(room, piece) for piece in weight.pieces}

    def _is_packed(self, weight: Weight) -> bool:
        names = {piece.name for piece in weight.pieces}
        return bool(names & (self.published | self.floats) or (self.packing and weight.bits))

    def _whole(self, weight: Weight) -> Tensor | PackedWeight:
        """Room for a weight, packed where it comes so, or where that is wanted and its parts have whole tiles."""
        starts = [piece.rows.start for piece in weight.pieces]
        # What comes packed stays packed, whatever the settings say: unpacked it may not fit into memory.
        if any(piece.name in self.published for piece in weight.pieces):
            return self._published_room(weight, starts)
        if weight.pieces[0].name in self.floats and packable(weight.shape, starts):
            return PackedWeight(MxCodes.empty((weight.shape[0], weight.shape[1]), self.device))
        if self.packing and weight.bits and packable(weight.shape, starts):
            offsets = self.packing.offsets and weight.bits == 4
            d_out, d_in = weight.shape
            return PackedWeight.empty((d_out, d_in), weight.bits, self.packing.dtype, self.device, offsets=offsets)
        return torch.empty(weight.shape, dtype=torch.float32 if weight.fp32 else self.dtype, device=self.device)

    def _published_room(self, weight: Weight, starts: Sequence[int]) -> PackedWeight:
        names = [piece.name for piece in weight.pieces]
        if not weight.bits:
            raise BadRequest(f"{', '.join(names)} is packed in 4 bits; it is read only as it is.")
        if not (self.published >= set(names) and packable(weight.shape, starts)):
            raise BadRequest(
                f"Of {', '.join(names)} some are packed in 4 bits, together in the shape {list(weight.shape)}; either "
                "all are or none, and outputs come in whole sixteens."
            )
        d_out, d_in = weight.shape
        return PackedWeight.empty((d_out, d_in), 4, torch.bfloat16, self.device)

    def read(self, name: str, stored: Stored) -> bool:
        """Reads of a tensor just what this process holds; False where it must be read whole, by `put` then."""
        own = self._own(name)
        target = self.targets.get(own) if own else None
        if target is None or self.rooms.held is None or (target.room.is_wanted and target.room.part is None):
            return False
        del self.targets[own]
        self._check_shape(name, stored.shape, target)

        def check(tensor: Tensor) -> None:
            _check_dtype(name, tensor)
            check_finite(name, tensor)

        self.rooms.read(target.room, target.piece, stored, check)
        return True

    def put(self, name: str, tensor: Tensor) -> None:
        name = self._own(name)
        if not name:
            return
        # Taken out, so that a tensor that comes twice is refused like one that has no place.
        target = self.targets.pop(name, None)
        if target is None:
            raise BadRequest(f"The folder holds a tensor {name!r} that this {self.spec.family} model has no place for.")
        self._check_shape(name, tensor.shape, target)
        _check_dtype(name, tensor)
        # Rounding makes symmetric codes. Room with offsets was made for the model's own blocks, which this weight
        # lacks.
        if (packed := target.packed) is not None and packed.codes.offsets is not None:
            raise BadRequest(f"{name!r} has no blocks in {BLOCKS_FILE}, where others have; {ADD_AGAIN}")
        check_finite(name, tensor)
        # Converts to the compute dtype, or rounds into packed codes, on the way to its place.
        self.rooms.copy(target.room, target.piece, tensor)

    def _own(self, name: str) -> str:
        """The name under which a tensor has its place; empty where it has none and needs none."""
        # With tied embeddings both names mean one tensor, and the first of them that is stored fills it.
        if name == self.tied_head:
            if self.embedding in self.stored:
                return ""  # a copy
            name = self.embedding  # of the two that are one, a folder may store either
        return "" if name.startswith(self.ignored) else name

    def _check_shape(self, name: str, shape: Sequence[int], target: _Target) -> None:
        if tuple(shape) != target.shape:
            raise BadRequest(f"{name!r} has the shape {list(shape)}; it should be {list(target.shape)}.")

    def put_blocks(self, name: str, blocks: Blocks) -> None:
        if name.startswith(self.ignored):
            return
        target = self.targets.get(name)
        if self.passes_over([name]):
            self.packed.add(name)  # so that its dequantised tensor is skipped as well
            return
        packed = target.packed if target else None
        if target is None or packed is None or packed.shape != blocks.code_OI.shape:
            raise BadRequest(
                f"{name!r}, packed in 4 bits in the shape {list(blocks.code_OI.shape)}, fits no weight of this "
                f"{self.spec.family} model."
            )
        # Compared before anything is written, since packed places would take codes of another meaning as they are.
        if (defect := blocks.defect(packed)) is not None:
            raise BadRequest(f"{name!r} is packed otherwise than its place: {defect}. {ADD_AGAIN}")
        blocks.fill(packed)
        self.rooms.filled(target.room)
        del self.targets[name]
        self.packed.add(name)

    def passes_over(self, names: Sequence[str]) -> bool:
        """Whether all these weights have places, and this process holds nothing of them: they need not be read."""
        targets = {name: self.targets[name] for name in names if name in self.targets}
        if not names or any(target.room.is_wanted for target in targets.values()):
            return False
        self.unheld |= targets.keys()
        for name in targets:
            del self.targets[name]
        return self.unheld.issuperset(names)

    def put_floats(self, name: str, codes: MxCodes) -> None:
        """A weight in MXFP4."""
        if self.passes_over([name]):
            return
        target = self.targets.pop(name, None)
        packed = target.packed if target else None
        fits = packed is not None and packed.shape == (codes.d_out, codes.d_in)
        if not fits or target is None or packed is None or not isinstance(packed.codes, MxCodes):
            raise BadRequest(
                f"{name!r}, in MXFP4 in the shape {[codes.d_out, codes.d_in]}, fits no weight of this "
                f"{self.spec.family} model whose outputs come in whole sixteens."
            )
        packed.codes.fill(codes)
        self.rooms.filled(target.room)

    def check_complete(self, folder: Path) -> None:
        if self.targets:
            missing = sorted(self.targets)
            raise BadRequest(f"{folder} lacks {len(missing)} tensors, among them {', '.join(missing[:5])}.")

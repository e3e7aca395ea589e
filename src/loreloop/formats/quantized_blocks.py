"""The quantised blocks of a model's own file, kept beside its dequantised weights: `int4/blocks.safetensors`.

For a weight NAME (O, I): `NAME.codes`, (O, I / 2) uint8 with the even input in the low half, or (O, I) int8;
`NAME.scales` and perhaps `NAME.offsets`, (O, I / 32) fp16. They give the very values of the dequantised weights. Knows
no GGUF.

Legend: O outputs, I inputs, G groups of inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from loreloop.formats.tensor_file import write_tensors
from loreloop.formats.weight_files import BLOCKS_FILE
from loreloop.kernels.packed_products import GROUP
from loreloop.model.packed_weights import ZERO_CODE, PackedWeight
from loreloop.protocol.errors import BadRequest


@dataclass(frozen=True)
class Blocks:
    """Codes (O, I) uint8 0 … 15 or int8; scales and offsets (O, I / 32) fp16."""

    code_OI: Tensor
    scale_OG: Tensor
    offset_OG: Tensor | None

    def dense(self) -> Tensor:
        """The weight (O, I), bf16."""
        # Four-bit codes without offsets are symmetric around 8; offsets already contain that.
        zero = ZERO_CODE if self.offset_OG is None and self.code_OI.dtype == torch.uint8 else 0
        value_OGI = (self.code_OI.float() - zero).unflatten(1, (-1, GROUP)) * self.scale_OG.float()[:, :, None]
        if self.offset_OG is not None:
            value_OGI += self.offset_OG.float()[:, :, None]
        return value_OGI.flatten(1).to(torch.bfloat16)

    def defect(self, weight: PackedWeight) -> str | None:
        """Why they cannot fill a weight of their shape; None if they can."""
        place = weight.codes
        if self.code_OI.dtype != place.codes.dtype or (self.offset_OG is None) != (place.offsets is None):
            return f"its codes are {self.code_OI.dtype}, with{'out' if self.offset_OG is None else ''} offsets"
        wanted = (place.d_out, place.d_in // GROUP)
        for part in (self.scale_OG, self.offset_OG):
            if part is not None and (part.shape != wanted or part.dtype != place.scales.dtype):
                return f"scales are {list(part.shape)} {part.dtype}, not {list(wanted)} {place.scales.dtype}"
            if part is not None and not bool(part.isfinite().all()):
                return "some scales are not finite"
        return None

    def fill(self, weight: PackedWeight) -> None:
        """Puts the codes, as they are, into a weight that `defect` has accepted."""
        weight.fill(self.code_OI, self.scale_OG, self.offset_OG)


def write_blocks(folder: Path, blocks: Mapping[str, Blocks]) -> None:
    """Writes them beside the model of `folder`."""
    tensors: dict[str, Tensor] = {}
    for name, block in blocks.items():
        code_OI = block.code_OI
        if code_OI.dtype == torch.uint8:
            # Two codes a byte on disk; in memory each has a byte of its own until it is packed in the kernel's order.
            code_OI = code_OI[:, 0::2] | code_OI[:, 1::2] << 4
        tensors |= {f"{name}.codes": code_OI, f"{name}.scales": block.scale_OG}
        if block.offset_OG is not None:
            tensors[f"{name}.offsets"] = block.offset_OG
    (folder / BLOCKS_FILE).parent.mkdir(exist_ok=True)
    write_tensors(folder / BLOCKS_FILE, tensors)


def read_blocks(folder: Path) -> Iterator[tuple[str, Blocks]]:
    """The weights that have blocks, one at a time."""
    try:
        with safe_open(str(folder / BLOCKS_FILE), framework="pt") as file:
            names = set(file.keys())
            for name in sorted(name.removesuffix(".codes") for name in names if name.endswith(".codes")):
                code_OI = file.get_tensor(f"{name}.codes")
                if code_OI.dtype == torch.uint8:
                    # The inverse of `write_blocks`: the even input is in the low half.
                    code_OI = torch.stack((code_OI & 15, code_OI >> 4), -1).flatten(1)
                offsets = file.get_tensor(f"{name}.offsets") if f"{name}.offsets" in names else None
                yield name, Blocks(code_OI, file.get_tensor(f"{name}.scales"), offsets)
    except (OSError, SafetensorError) as error:
        raise BadRequest(
            f"{folder / BLOCKS_FILE} cannot be read: {error}. Delete it and add the model again."
        ) from None

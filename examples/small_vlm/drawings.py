"""Which things there are, and their drawings: names out of the icon sets, SVG to pixels, the teacher's view of each.

A drawing is RGBA, so that a view can put it on any background. Names are split once and for all: `known` ones have a
drawing in every style and are taught, `extra` ones have drawings in some training styles and are taught too, `novel`
ones are like `known` but never seen in any training: they are kept for few-shot studies.

N drawings, B batch, S side in pixels, C channels, F features, H and W places in a map of features.
"""

from __future__ import annotations

import io
import json
import random
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from examples.small_vlm import parts, teacher
from examples.small_vlm.progress import Progress

SIDE = 96  # pixels that the tower sees
TEACHER_SIDE = 192
NOVEL = 100  # classes kept for few-shot studies
SEED = 20

# No exam asks for what is told apart by marks that vanish at this size (faces, clocks, gestures, signs), or named as
# nobody would guess. Most of it still teaches the tower to see; variants of one drawing do not.
DULL = re.compile(
    r"\b(face|cat with|flag|button|arrows?|oclock|thirty|keycap|circle|square|diamond|sign|symbol|input|japanese|skin|"
    r"tone|person|people|man|men|mans|woman|women|womans|mens|womens|boy|girl|couple|family|kiss|hands?|finger|fist|"
    r"pointing|thumbs|hearts?|moon|mark|asterisk|bubble|zzz|om|registered|copyright|mahjong|medium|dark|light skin|"
    r"aquarius|aries|cancer|capricorn|gemini|leo|libra|pisces|sagittarius|scorpio|taurus|virgo|ophiuchus|oncoming|"
    r"globe|hourglass|mailbox|speaker|suit|loop|no|prohibited|blue|green|yellow|purple|orange|chart|with cloud)\b"
)
VARIANT = re.compile(r"\b(tone\d?|skin|flag|regional|keycap|letter|oclock|thirty|light|dark|couple|family|keycap)\b|\d")


@dataclass(frozen=True)
class Split:
    known: list[str]
    novel: list[str]
    extra: list[str]


@dataclass(frozen=True)
class Drawings:
    """Drawing n shows `names[n]` in the style `styles[n]`; the teacher sees `features_NF` in it, and `maps_NFHW` in
    its parts."""

    split: Split
    names: list[str]
    styles: list[str]
    rgba_NSSC: np.ndarray
    features_NF: torch.Tensor
    maps_NFHW: np.ndarray

    def where(self, names: Collection[str], styles: Collection[str]) -> list[int]:
        return [n for n, name in enumerate(self.names) if name in names and self.styles[n] in styles]


def documents(icons: dict[str, Any]) -> dict[str, str]:
    """SVG documents by English name; aliases count unless they turn or mirror a drawing."""
    found = {key: icon for key, icon in icons["icons"].items() if not icon.get("hidden")}
    for alias, to in icons.get("aliases", {}).items():
        if set(to) == {"parent"} and to["parent"] in found:
            found.setdefault(alias, found[to["parent"]])
    width, height = icons.get("width", 16), icons.get("height", 16)
    return {
        key.replace("-", " "): '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {icon.get("width", width)} {icon.get("height", height)}">{icon["body"]}</svg>'
        for key, icon in sorted(found.items())
    }


def split_names(names_of: dict[str, Collection[str]]) -> Split:
    """`names_of[style]` are the names drawn in it. The split depends on nothing else."""
    names = {name for drawn in names_of.values() for name in drawn if len(name.split()) < 4}
    everywhere = {name for name in names if all(name in drawn for drawn in names_of.values())}
    asked = sorted(name for name in everywhere if not DULL.search(name))
    novel = sorted(random.Random(SEED).sample(asked, min(NOVEL, len(asked) // 3)))
    extra = sorted(
        name
        for name in names.difference(asked)
        if sum(name in names_of[style] for style in parts.TRAINING_STYLES) >= 3 and not VARIANT.search(name)
    )
    return Split([name for name in asked if name not in novel], novel, extra)


def render(svg: str, side: int) -> np.ndarray:
    """The pixels of an SVG: (side, side, RGBA), bytes."""
    import resvg_py  # an extra of the examples

    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side, skip_system_fonts=True))
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA").resize((side, side)))


def make(archives: Path, work: Path, limit: int | None) -> None:
    """Renders every drawing and asks the teacher about it. `limit` takes that many names of each kind (for a trial)."""
    svgs = {s.style: documents(parts.read_icons(archives, s)) for s in parts.ICON_SETS}
    full = split_names(svgs)
    split = Split(full.known[:limit], full.novel[:limit], full.extra[:limit])
    wanted = [
        (name, style)
        for kind, styles in ((split.known + split.novel, list(svgs)), (split.extra, parts.TRAINING_STYLES))
        for name in kind
        for style in styles
        if name in svgs[style]
    ]
    sees = teacher.load(parts.read_teacher_weights(archives))
    progress = Progress("drawings", len(wanted))
    rgba_NSSC = np.empty((len(wanted), SIDE, SIDE, 4), np.uint8)
    features: list[torch.Tensor] = []
    maps: list[np.ndarray] = []
    for start in range(0, len(wanted), 64):
        batch = wanted[start : start + 64]
        for k, (name, style) in enumerate(batch):
            rgba_NSSC[start + k] = render(svgs[style][name], SIDE)
        large_BSSC = np.stack([render(svgs[style][name], TEACHER_SIDE) for name, style in batch])
        with torch.inference_mode():
            parts_BFHW, whole_BF = sees(on_white(large_BSSC))
        maps.append(parts_BFHW.numpy().astype(np.float16))
        features.append(whole_BF.clone())
        progress.step(start + len(batch))
    np.save(work / "rgba.npy", rgba_NSSC)
    np.save(work / "maps.npy", np.concatenate(maps))
    torch.save(torch.cat(features), work / "features.pt")
    names = {"known": split.known, "novel": split.novel, "extra": split.extra, "drawings": wanted}
    (work / "drawings.json").write_text(json.dumps(names, indent=0))  # last: it says that the stage is over


def load(work: Path) -> Drawings:
    listed = json.loads((work / "drawings.json").read_text())
    names, styles = [name for name, _ in listed["drawings"]], [style for _, style in listed["drawings"]]
    split = Split(listed["known"], listed["novel"], listed["extra"])
    features_NF = torch.load(work / "features.pt", weights_only=True)
    rgba_NSSC, maps_NFHW = (np.load(work / f"{name}.npy", mmap_mode="r") for name in ("rgba", "maps"))
    return Drawings(split, names, styles, rgba_NSSC, features_NF, maps_NFHW)


def on_white(rgba_BSSC: np.ndarray) -> torch.Tensor:
    """Images (B, 3, S, S) in 0..1 as one sees them on paper."""
    x_BCSS = torch.from_numpy(np.array(rgba_BSSC)).permute(0, 3, 1, 2).float() / 255
    alpha = x_BCSS[:, 3:]
    return x_BCSS[:, :3] * alpha + (1 - alpha)


def save_folders(drawings: Drawings, names: list[str], folder: Path) -> None:
    """One sub-folder a class with one PNG a style, as class-folder data sets are."""
    for n in drawings.where(set(names), set(drawings.styles)):
        place = folder / drawings.names[n].replace(" ", "_")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawings.rgba_NSSC[n]).save(place / f"{drawings.styles[n]}.png")

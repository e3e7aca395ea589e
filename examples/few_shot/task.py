"""One few-shot task: some classes of a folder of images, k labelled images of each, an order to be shown in, an exam.

A data set is a folder with a sub-folder a class. Exam images are those whose file name holds one of `held_out`
(drawing styles, say), or a share of each class drawn by the seed. Where a class has fewer files than shots, further
shots are views of its files in turn: moved, scaled, a little turned, transparent ones on another background.
"""

from __future__ import annotations

import io
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

SHOTS = (1, 2, 4, 8, 16)
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Labelled:
    """A PNG of an image, three channels, and the class that it shows."""

    png: bytes
    name: str


@dataclass(frozen=True)
class Task:
    """`batches` says which of `shown` each step sees; every method takes the same steps."""

    names: list[str]
    shown: list[Labelled]
    exam: list[Labelled]
    batches: list[list[int]]


@dataclass(frozen=True)
class Plan:
    """How tasks are made. `repeats` times the largest number of shots over k is how often each of k images is shown,
    so that all shots take equal steps. `most_pixels` bounds an image's longer side."""

    ways: int | None = 20  # classes drawn for each seed; None: all
    shots: tuple[int, ...] = SHOTS
    repeats: int = 10
    batch: int = 32
    exam_images: int = 256
    held_out: tuple[str, ...] = ()
    most_pixels: int = 480


class ClassFolder:
    """Files by class, in a fixed order."""

    def __init__(self, folder: Path) -> None:
        self.files: dict[str, list[Path]] = {}
        for place in sorted(entry for entry in folder.iterdir() if entry.is_dir()):
            files = sorted(file for file in place.iterdir() if file.suffix.lower() in SUFFIXES)
            if files:
                self.files[class_name(place.name)] = files
        if len(self.files) < 2:
            raise SystemExit(f"{folder} has {len(self.files)} sub-folders with images; a class each, at least two.")

    def task(self, plan: Plan, shots: int, seed: int) -> Task:
        """The same classes and exam for every number of shots; fewer shots are the first of more."""
        rng = random.Random(seed)
        names = sorted(self.files)
        if plan.ways is not None and plan.ways < len(names):
            names = sorted(rng.sample(names, plan.ways))
        shown: list[Labelled] = []
        exam: list[Labelled] = []
        for name in names:
            train, test = self._split(name, plan, rng)
            chosen = rng.sample(train, len(train))
            views = random.Random(f"{seed} {name}")
            shown += [Labelled(shot(chosen, k, plan.most_pixels, views), name) for k in range(shots)]
            exam += [Labelled(as_png(open_image(file), plan.most_pixels), name) for file in test]
        if len(exam) > plan.exam_images:
            exam = rng.sample(exam, plan.exam_images)
        times, rest = divmod(plan.repeats * max(plan.shots), shots)
        if rest:
            raise SystemExit(
                f"{plan.repeats} repeats of {max(plan.shots)} shots cannot be shared out evenly among {shots}, and all "
                "shall take equal steps; choose other --shots or --repeats."
            )
        return Task(names, shown, exam, list(batches(len(shown), times, plan.batch, rng)))

    def _split(self, name: str, plan: Plan, rng: random.Random) -> tuple[list[Path], list[Path]]:
        files = self.files[name]
        if plan.held_out:
            test = [file for file in files if any(part in file.stem for part in plan.held_out)]
        else:
            test = rng.sample(files, max(1, len(files) // 3))
        train = [file for file in files if file not in test]
        if not train or not test:
            raise SystemExit(
                f"The class {name!r} has {len(train)} files to learn from and {len(test)} for the exam; both need some."
            )
        return train, test


def class_name(folder: str) -> str:
    """As the published comparison writes them: lower case, without underscores, dots and dashes."""
    return re.sub(r"\s+", " ", re.sub(r"[_.\-]", " ", folder)).strip().lower()


def batches(n_images: int, times: int, batch: int, rng: random.Random) -> Iterator[list[int]]:
    """Each image `times` times, shuffled anew each time."""
    order = [k for _ in range(times) for k in rng.sample(range(n_images), n_images)]
    return (order[start : start + batch] for start in range(0, len(order), batch))


def open_image(file: Path) -> Image.Image:
    with Image.open(file) as image:
        return image.convert("RGBA")


def shot(files: Sequence[Path], k: int, most_pixels: int, rng: random.Random) -> bytes:
    """The k-th labelled image of a class: a file as it is, or once they are used up a view of one."""
    image = open_image(files[k % len(files)])
    return as_png(image if k < len(files) else view(image, rng), most_pixels)


def view(image: Image.Image, rng: random.Random) -> Image.Image:
    """Moved, scaled and turned a little, never mirrored, on a light background of some colour."""
    width, height = image.size
    scale, turn = rng.uniform(0.75, 1.05), rng.uniform(-12, 12)
    smaller = image.resize((max(1, round(width * scale)), max(1, round(height * scale))))
    turned = smaller.rotate(turn, Image.Resampling.BICUBIC, expand=True)
    back = Image.new("RGBA", image.size, (*(rng.randrange(150, 256) for _ in range(3)), 255))
    left, top = (round((a - b) * rng.uniform(0.2, 0.8)) for a, b in zip(image.size, turned.size, strict=True))
    back.paste(turned, (left, top), turned)
    return back


def as_png(image: Image.Image, most_pixels: int) -> bytes:
    """On white where it is transparent, and no longer than `most_pixels` a side."""
    flat = Image.new("RGBA", image.size, "white")
    flat.alpha_composite(image)
    flat.thumbnail((most_pixels, most_pixels))
    buffer = io.BytesIO()
    flat.convert("RGB").save(buffer, "png")
    return buffer.getvalue()

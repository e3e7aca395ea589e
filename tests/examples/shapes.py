"""Images drawn by the tests: shapes in colours, one sub-folder a class, one file a style, as the study's data are."""

import itertools
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle", "bar")
COLOURS = ("crimson", "seagreen", "royalblue", "goldenrod", "black", "purple")


def draw(shape: str, colour: str, side: int = 96) -> Image.Image:
    image = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    pen, a, b = ImageDraw.Draw(image), side // 5, side - side // 5
    if shape == "circle":
        pen.ellipse((a, a, b, b), fill=colour)
    elif shape == "square":
        pen.rectangle((a, a, b, b), fill=colour)
    elif shape == "triangle":
        pen.polygon([(a, b), (b, b), (side // 2, a)], fill=colour)
    else:
        pen.rectangle((side // 2 - 4, a, side // 2 + 4, b), fill=colour)
    return image


def write_classes(folder: Path) -> Path:
    for shape, colour in itertools.product(SHAPES, COLOURS):
        place = folder / f"Plain_{shape}"
        place.mkdir(parents=True, exist_ok=True)
        draw(shape, colour).save(place / f"{colour}.png")
    return folder


def pixels() -> tuple[list[str], list[str], np.ndarray]:
    """Names, colours and RGBA of every drawing."""
    both = list(itertools.product(SHAPES, COLOURS))
    return [s for s, _ in both], [c for _, c in both], np.stack([np.asarray(draw(s, c)) for s, c in both])

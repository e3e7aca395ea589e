"""Drawn shapes to be named or counted: the smallest environment for a model that sees, with a reward that is certain.

Each picture is drawn when its episode begins, out of what the task holds, so that a file of tasks needs no images.
"""

from __future__ import annotations

import base64
import io
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
from msgspec import Meta
from PIL import Image, ImageDraw

from loreloop.learn.environments.environment import Environment, Step
from loreloop.learn.examples import Task
from loreloop.learn.rewards.reward import Answer, Score
from loreloop.protocol.errors import BadRequest
from loreloop.text.conversation import Conversation, Picture, Turn, turn_of_parts

SHAPES = ("circle", "square", "triangle")
COLOURS = {"red": (200, 40, 40), "green": (40, 150, 60), "blue": (50, 70, 200), "black": (20, 20, 20)}
MOST_SHAPES, CELLS, PIXELS = 6, 3, 96  # shapes lie in different cells of a grid, so that none hides another
Ask = Literal["name", "count"]
ASKS: Mapping[Ask, str] = {
    "name": f"Which shape is this: {', '.join(SHAPES)}? Answer with one word.",
    "count": "How many shapes are there? Answer with a number.",
}


@dataclass(frozen=True)
class Scene:
    """What a picture shows: `count` shapes of one kind and colour; the seed says where and how large."""

    shape: str
    colour: str
    count: int
    seed: int


class ShapesItem(msgspec.Struct, frozen=True):
    """What a task's line in a file holds beside its conversation."""

    ask: Ask
    shape: Literal["circle", "square", "triangle"]
    colour: Literal["red", "green", "blue", "black"]
    count: Annotated[int, Meta(ge=1, le=MOST_SHAPES)]
    seed: int


class Shapes(Environment):
    """Tasks hold a scene's `shape`, `colour`, `count` and `seed`, and in `ask` what is asked of it."""

    def __init__(self) -> None:
        self.task = Task(Conversation(()))

    async def reset(self, task: Task) -> Conversation:
        """The question with its picture."""
        self.task = task
        item = task.item
        drawn = Picture(url_of(drawing(scene_of(item))))
        return Conversation((turn_of_parts("user", (drawn, ASKS[item["ask"]])),))

    async def step(self, answer: Answer) -> Step:
        """The score of the answer, which ends the episode."""
        score = self.score(answer)
        return Step(reward=score.value, parts=score.parts)

    def score(self, answer: Answer) -> Score:
        """1 for the right word or number alone of its kind; `form` tells whether there was just one."""
        item = self.task.item
        if item["ask"] == "count":
            said = set(re.findall(r"\d+", answer.text))
            wanted = str(item["count"])
        else:
            said = {shape for shape in SHAPES if shape in answer.text.lower()}
            wanted = item["shape"]
        # Whoever names everything would otherwise always be right.
        return Score(float(said == {wanted}), {"form": float(len(said) == 1)})


def scene_of(item: Mapping[str, object]) -> Scene:
    """The scene of a task. BadRequest where it cannot be drawn."""
    match dict(item):
        case {"ask": "name" | "count", "shape": str(shape), "colour": str(colour), "count": int(count), "seed": seed}:
            if shape in SHAPES and colour in COLOURS and 1 <= count <= MOST_SHAPES and isinstance(seed, int):
                return Scene(shape, colour, count, seed)
    raise BadRequest(
        f"A task of shapes has ask (name or count), shape ({', '.join(SHAPES)}), colour ({', '.join(COLOURS)}), count "
        f"(1 to {MOST_SHAPES}) and seed (an integer)."
    )


def drawing(scene: Scene) -> bytes:
    """The picture as PNG; the same scene gives the same bytes."""
    chance = random.Random(scene.seed)
    image = Image.new("RGB", (PIXELS, PIXELS), (245, 245, 245))
    pen, side = ImageDraw.Draw(image), PIXELS // CELLS
    for cell in chance.sample(range(CELLS * CELLS), scene.count):
        size = chance.randint(side // 2, side - 4)
        left = cell % CELLS * side + chance.randint(1, side - size - 1)
        top = cell // CELLS * side + chance.randint(1, side - size - 1)
        _PENS[scene.shape](pen, (left, top, left + size, top + size), COLOURS[scene.colour])
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def url_of(png: bytes) -> str:
    """The picture as a `data:` URL."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def shape_tasks(n: int, seed: int = 0, asks: tuple[Ask, ...] = ("name", "count")) -> list[Task]:
    """Scenes with what is asked of them, in turn. A shape to be named stands alone."""
    chance = random.Random(seed)
    tasks = []
    for number in range(n):
        ask = asks[number % len(asks)]
        item = {
            "ask": ask,
            "shape": chance.choice(SHAPES),
            "colour": chance.choice(list(COLOURS)),
            "count": 1 if ask == "name" else chance.randint(1, MOST_SHAPES),
            "seed": chance.randrange(1 << 30),
        }
        tasks.append(Task(Conversation((Turn("user", ASKS[ask]),)), item))
    return tasks


Box = tuple[int, int, int, int]  # left, top, right, bottom
Colour = tuple[int, int, int]


def _triangle(pen: ImageDraw.ImageDraw, box: Box, colour: Colour) -> None:
    left, top, right, bottom = box
    pen.polygon([(left, bottom), (right, bottom), ((left + right) // 2, top)], fill=colour)


_PENS: Mapping[str, Callable[[ImageDraw.ImageDraw, Box, Colour], None]] = {
    "circle": lambda pen, box, colour: pen.ellipse(box, fill=colour),
    "square": lambda pen, box, colour: pen.rectangle(box, fill=colour),
    "triangle": _triangle,
}

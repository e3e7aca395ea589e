"""Environments by the names that the command line and its config file have for them, with tasks of their own.

An environment of one's own needs no name: a program hands its class to the player.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from loreloop.learn.environments.environment import Environment, OneAnswer
from loreloop.learn.environments.flaky_shop import SHOWN, FlakyShop, ShopItem, shop_tasks
from loreloop.learn.environments.puzzles import Puzzles
from loreloop.learn.environments.shapes import Ask, Shapes, ShapesItem, shape_tasks
from loreloop.learn.examples import Task
from loreloop.protocol.errors import BadRequest

PUZZLES = "puzzles:"  # before the name of one of reasoning-gym's kinds of tasks
# What lines of a file hold for those environments that take tasks from one.
ITEMS: Mapping[str, type[msgspec.Struct]] = {"shop": ShopItem, "shapes": ShapesItem}
O = TypeVar("O", bound=msgspec.Struct)  # noqa: E741


@dataclass(frozen=True)
class Wanted:
    """An environment by name, with `n` tasks drawn by the seed and `n_held_out` others to look at. `options` are its
    own, as the text of a JSON object."""

    name: str
    n: int
    n_held_out: int = 0
    seed: int = 0
    options: str = "{}"


@dataclass(frozen=True)
class Named:
    """What a name stands for: its tasks, those that ask what none of these does, and what makes an environment for an
    episode with one of them."""

    tasks: Sequence[Task]
    held_out: Sequence[Task]
    make: Callable[[], Environment]


class ShopOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of `shop`: the share of calls that fail, and how many orders are shown before each task."""

    fault_rate: Annotated[float, Meta(ge=0, lt=1)] = 0.2
    shown: Annotated[int, Meta(ge=0, le=len(SHOWN))] = len(SHOWN)


class ShapesOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of `shapes`: what is asked of pictures, in turn."""

    asks: Annotated[tuple[Ask, ...], Meta(min_length=1)] = ("name", "count")


def named(wanted: Wanted) -> Named:
    """The environment. BadRequest where there is none of this name, or its options are not its own."""
    if wanted.name == "shop":
        shop = _options(wanted, ShopOptions)
        looked_at = shop_tasks(wanted.n_held_out, wanted.seed, shown=shop.shown, held_out=True)
        tasks = shop_tasks(wanted.n, wanted.seed, shown=shop.shown)
        return Named(tasks, looked_at, lambda: FlakyShop(shop.fault_rate))
    if wanted.name == "shapes":
        asks = _options(wanted, ShapesOptions).asks
        # Every picture is another one, by its own seed.
        tasks = shape_tasks(wanted.n + wanted.n_held_out, wanted.seed, asks)
        return Named(tasks[: wanted.n], tasks[wanted.n :], Shapes)
    if wanted.name.startswith(PUZZLES):
        puzzles = _puzzles(wanted)
        tasks = puzzles.tasks()
        learned = {task.prompt.turns[0].content for task in tasks[: wanted.n]}
        looked_at = [task for task in tasks[wanted.n :] if task.prompt.turns[0].content not in learned]
        if wanted.n_held_out and not looked_at:
            raise BadRequest(
                f"{wanted.name} has too few different tasks to hold any out; ask for fewer with --tasks, or for none "
                "to look at with --eval-tasks 0."
            )
        return Named(tasks[: wanted.n], looked_at, lambda: OneAnswer(puzzles))
    raise BadRequest(f"There is no environment {wanted.name!r}; there are shop, shapes and {PUZZLES}NAME.")


def _puzzles(wanted: Wanted) -> Puzzles:
    kind = wanted.name.removeprefix(PUZZLES)
    try:
        return Puzzles(kind, wanted.n + wanted.n_held_out, wanted.seed, _object(wanted))
    except (TypeError, ValueError, AssertionError) as error:
        # What the package's own configuration of the kind says of a value.
        raise BadRequest(f"The options of {wanted.name} are wrong: {error}.") from None


def _options(wanted: Wanted, kind: type[O]) -> O:
    try:
        return msgspec.convert(_object(wanted), kind)
    except msgspec.ValidationError as error:
        raise BadRequest(f"The options of {wanted.name} are wrong: {error}.") from None


def _object(wanted: Wanted) -> Mapping[str, Any]:
    try:
        found = json.loads(wanted.options)
    except ValueError as error:
        raise BadRequest(f"The options of {wanted.name} are wrong: {error}.") from None
    if not isinstance(found, dict):
        raise BadRequest(f"The options of {wanted.name} are wrong: they are one JSON object.")
    return found

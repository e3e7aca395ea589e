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
from loreloop.learn.environments.flaky_shop import SHOWN, FlakyShop, shop_tasks
from loreloop.learn.environments.puzzles import Puzzles
from loreloop.learn.environments.shapes import Ask, Shapes, shape_tasks
from loreloop.learn.examples import Task
from loreloop.protocol.errors import BadRequest

PUZZLES = "puzzles:"  # before the name of one of reasoning-gym's kinds of tasks
O = TypeVar("O", bound=msgspec.Struct)  # noqa: E741


@dataclass(frozen=True)
class Wanted:
    """An environment by name, with `n` tasks drawn by the seed. `options` are its own, as the text of a JSON object."""

    name: str
    n: int
    seed: int = 0
    options: str = "{}"


@dataclass(frozen=True)
class Named:
    """What a name stands for: its tasks, and what makes an environment for an episode with one of them."""

    tasks: Sequence[Task]
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
        return Named(shop_tasks(wanted.n, wanted.seed, shown=shop.shown), lambda: FlakyShop(shop.fault_rate))
    if wanted.name == "shapes":
        asks = _options(wanted, ShapesOptions).asks
        return Named(shape_tasks(wanted.n, wanted.seed, asks), Shapes)
    if wanted.name.startswith(PUZZLES):
        puzzles = _puzzles(wanted)
        return Named(puzzles.tasks(), lambda: OneAnswer(puzzles))
    raise BadRequest(f"There is no environment {wanted.name!r}; there are shop, shapes and {PUZZLES}NAME.")


def _puzzles(wanted: Wanted) -> Puzzles:
    kind = wanted.name.removeprefix(PUZZLES)
    try:
        return Puzzles(kind, wanted.n, wanted.seed, _object(wanted))
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

"""A simulated API that remembers and fails: a shop whose stock changes with every order, and whose calls time out.

One answer cannot solve it, since the order's number, which is asked for, is known only after the order. Faults are
drawn from the task's own seed, so an episode's luck is the same each time that it is played.
"""

from __future__ import annotations

import json
import random
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from loreloop.learn.environments.tools import ToolEnvironment, ToolFailure, ToolTimeout, tool
from loreloop.learn.examples import Task
from loreloop.learn.rewards.reward import Answer, Score
from loreloop.text.conversation import Conversation, MadeCall, Turn

GOODS = ("apples", "bread", "cheese", "dates", "eggs", "figs")
MOST_STOCK = 20  # of an item
SHOWN = (("figs", 2, "A512"), ("cheese", 3, "A208"))


class FlakyShop(ToolEnvironment):
    """Tasks name an `item` and a `count`. `fault_rate` of the calls fail without having done anything."""

    def __init__(self, fault_rate: float = 0.2) -> None:
        super().__init__()
        self.fault_rate = fault_rate

    async def reset(self, task: Task) -> Conversation:
        """Fills the shelves anew."""
        self.rng = random.Random(int(task.item.get("seed", 0)))
        self.stock = {good: self.rng.randint(5, MOST_STOCK) for good in GOODS}
        self.orders: dict[str, tuple[str, int]] = {}
        return await super().reset(task)

    @tool
    async def stock_of(self, item: str) -> str:
        """How many of an item there are."""
        self._luck()
        return str(self._count(item))

    @tool
    async def order(self, item: str, count: int) -> str:
        """Orders so many of an item. Gives the order's number."""
        self._luck()
        if not 0 < count <= self._count(item):
            raise ToolFailure(f"there are {self._count(item)} {item}, so {count} cannot be ordered.")
        self.stock[item] -= count
        number = f"A{self.rng.randint(100, 999)}"
        self.orders[number] = (item, count)
        return number

    async def outcome(self, answer: Answer) -> Score:
        """1 for the wanted order, ordered once and its number told; half of it for an order that is not told."""
        wanted = (self.task.item["item"], self.task.item["count"])
        made = [number for number, order in self.orders.items() if order == wanted]
        if len(self.orders) != 1 or not made:
            return Score(0.0, {"ordered": 0.0, "told": 0.0})
        told = float(made[0] in answer.text and not answer.calls)
        return Score(0.5 + 0.5 * told, {"ordered": 1.0, "told": told})

    def _luck(self) -> None:
        if self.rng.random() < self.fault_rate:
            raise ToolTimeout("timeout; nothing was done. Try again.")

    def _count(self, item: str) -> int:
        if item not in self.stock:
            raise ToolFailure(f"there is no {item}; there are {', '.join(GOODS)}.")
        return self.stock[item]


class ShopItem(msgspec.Struct, frozen=True):
    """What a task's line in a file holds beside its conversation. No shelf ever holds more than `MOST_STOCK`."""

    item: Literal["apples", "bread", "cheese", "dates", "eggs", "figs"]
    count: Annotated[int, Meta(ge=1, le=MOST_STOCK)]
    seed: int = 0


def is_held_out(item: str, count: int) -> bool:
    """Whether an order is one of the quarter of goods and counts that are looked at and never learned from."""
    return (GOODS.index(item) + count) % 4 == 0


def shop_tasks(n: int, seed: int = 0, *, shown: int = 0, held_out: bool = False) -> list[Task]:
    """Orders of one to four of an item, each with a seed for its shop's luck: of the goods and counts that are held
    out, or of the others. So many orders that went well are shown before each, up to two: a small model calls nothing
    before it has seen how."""
    rng = random.Random(seed)
    before = [turn for number in range(shown) for turn in _shown(number)]
    orders = [(item, count) for item in GOODS for count in range(1, 5) if is_held_out(item, count) is held_out]
    tasks = []
    for _ in range(n):
        item, count = rng.choice(orders)
        fields = {"item": item, "count": count, "seed": rng.randrange(1 << 30)}
        tasks.append(Task(Conversation((*before, Turn("user", _asked(item, count)))), fields))
    return tasks


def _asked(item: str, count: int) -> str:
    return f"Order {count} {item} and tell me the order's number."


def _shown(number: int) -> tuple[Turn, ...]:
    """An order and its answer, without any fault."""
    item, count, name = SHOWN[number]
    call = MadeCall(f"shown_{number}", "order", json.dumps({"item": item, "count": count}))
    return (
        Turn("user", _asked(item, count)),
        Turn("assistant", calls=(call,)),
        Turn("tool", name, call_id=call.call_id, name=call.name),
        Turn("assistant", f"The order's number is {name}."),
    )

"""A simulated API that remembers and fails: a shop whose stock changes with every order, and whose calls time out.

One answer cannot solve it, since the order's number, which is asked for, is known only after the order. Faults are
drawn from the task's own seed, so an episode's luck is the same each time that it is played.
"""

from __future__ import annotations

import random

from loreloop.learn.environments.tools import ToolEnvironment, ToolFailure, tool
from loreloop.learn.examples import Task
from loreloop.learn.rewards.reward import Answer, Score
from loreloop.text.conversation import Conversation, Turn

GOODS = ("apples", "bread", "cheese", "dates", "eggs", "figs")


class FlakyShop(ToolEnvironment):
    """Tasks name an `item` and a `count`. `fault_rate` of the calls fail without having done anything."""

    def __init__(self, fault_rate: float = 0.2) -> None:
        super().__init__()
        self.fault_rate = fault_rate

    async def reset(self, task: Task) -> Conversation:
        """Fills the shelves anew."""
        self.rng = random.Random(int(task.item.get("seed", 0)))
        self.stock = {good: self.rng.randint(5, 20) for good in GOODS}
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
            raise ToolFailure("timeout; nothing was done. Try again.")

    def _count(self, item: str) -> int:
        if item not in self.stock:
            raise ToolFailure(f"there is no {item}; there are {', '.join(GOODS)}.")
        return self.stock[item]


def shop_tasks(n: int, seed: int = 0) -> list[Task]:
    """Orders of one to four of an item, each with a seed for its shop's luck."""
    rng = random.Random(seed)
    tasks = []
    for _ in range(n):
        item, count = rng.choice(GOODS), rng.randint(1, 4)
        ask = f"Order {count} {item} and tell me the order's number."
        fields = {"item": item, "count": count, "seed": rng.randrange(1 << 30)}
        tasks.append(Task(Conversation((Turn("user", ask),)), fields))
    return tasks

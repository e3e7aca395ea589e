"""A calculator: the smallest tool environment, and one that small models cannot do without.

Its expressions are read as syntax and computed here, within bounds; nothing is ever run as code.
"""

from __future__ import annotations

import ast
import operator
import warnings
from collections.abc import Callable, Mapping

from loreloop.learn.environments.tools import ToolEnvironment, ToolFailure, tool
from loreloop.learn.rewards.reward import Answer, Reward, Score

MOST_CHARACTERS, MOST_DIGITS, MOST_POWER = 200, 100, 64
Number = int | float
TWO: Mapping[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}


class Calculator(ToolEnvironment):
    """Questions about numbers, with a calculator, and a reward for the last answer."""

    def __init__(self, reward: Reward) -> None:
        super().__init__()
        self.reward = reward

    @tool
    async def calculate(self, expression: str) -> str:
        """Computes an expression of numbers with + - * / // % ** and parentheses."""
        return str(computed(expression))

    async def outcome(self, answer: Answer) -> Score:
        """The reward of the last answer."""
        return await self.reward(answer, self.task)


def computed(expression: str) -> Number:
    """The value of an expression. ToolFailure where it is none, is too large, or has no value."""
    if len(expression) > MOST_CHARACTERS:
        raise ToolFailure(f"an expression has at most {MOST_CHARACTERS} characters.")
    try:
        with warnings.catch_warnings():
            # What a model writes badly is its affair, and not to be printed over the run's own lines.
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(expression.strip(), mode="eval")
        return _value(tree.body)
    except (SyntaxError, ZeroDivisionError, OverflowError, RecursionError) as error:
        raise ToolFailure(f"{expression!r} has no value: {error}.") from None


def _value(node: ast.expr) -> Number:
    match node:
        case ast.Constant(value) if type(value) in (int, float):
            return _bounded(value)  # type: ignore[arg-type]
        case ast.UnaryOp(ast.USub(), operand):
            return -_value(operand)
        case ast.UnaryOp(ast.UAdd(), operand):
            return _value(operand)
        case ast.BinOp(left, sign, right) if type(sign) in TWO:
            first, second = _value(left), _value(right)
            if isinstance(sign, ast.Pow) and abs(second) > MOST_POWER:
                raise ToolFailure(f"a power is at most {MOST_POWER}.")
            return _bounded(TWO[type(sign)](first, second))
    raise ToolFailure("an expression has numbers, + - * / // % ** and parentheses only.")


def _bounded(value: Number) -> Number:
    if isinstance(value, complex) or abs(value) >= 10**MOST_DIGITS:
        raise ToolFailure(f"a number has at most {MOST_DIGITS} digits.")
    return value

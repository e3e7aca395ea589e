"""The formulas of `multi` graders: numbers, names, + - * / ^, brackets and eight functions. Knows no grader.

Powers go to the right and bind more tightly than a sign: -2^2 is -4, 2^3^2 is 512.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce

MAX_CHARACTERS, MAX_DEPTH = 4096, 64
FUNCTIONS: dict[str, tuple[int, int, Callable[..., float]]] = {  # fewest arguments, most, and the function
    "min": (1, 64, lambda *numbers: min(numbers)),
    "max": (1, 64, lambda *numbers: max(numbers)),
    "abs": (1, 1, abs),
    "floor": (1, 1, lambda number: float(math.floor(number))),
    "ceil": (1, 1, lambda number: float(math.ceil(number))),
    "exp": (1, 1, math.exp),
    "sqrt": (1, 1, math.sqrt),
    "log": (1, 1, math.log),
}
OPERATORS: dict[str, Callable[[float, float], float]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "^": math.pow,
}
_TOKEN = re.compile(r"\s*(?:((?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|([A-Za-z_][A-Za-z0-9_]*)|([-+*/^(),]))")

Evaluate = Callable[[Mapping[str, float]], float]


@dataclass(frozen=True)
class Formula:
    """A parsed formula and the names that it reads."""

    names: frozenset[str]
    evaluate: Evaluate  # ArithmeticError or ValueError where there is no value, as for a division by zero


def formula_of(text: str) -> Formula:
    """The formula; ValueError says where it is none."""
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"the formula has {len(text)} characters; at most {MAX_CHARACTERS} are read")
    parser = _Parser(text)
    evaluate = parser.sum_()
    if parser.token:
        raise parser.wrong("an operator or the end")
    return Formula(frozenset(parser.names), evaluate)


class _Parser:
    """Recursive descent, one method for each level of binding."""

    def __init__(self, text: str) -> None:
        self.text, self.at, self.depth, self.names = text, 0, 0, set[str]()
        self.token, self.start = "", 0
        self.next()

    def next(self) -> str:
        """The present token; the one behind it becomes present. "" is the end."""
        before = self.token
        match = _TOKEN.match(self.text, self.at)
        self.start = self.at
        if match:
            self.token, self.at = match[0].strip(), match.end()
            self.start = self.at - len(self.token)
        elif self.text[self.at :].strip():
            self.token = self.text[self.at :].strip()[0]
            raise self.wrong("a number, a name or an operator")
        else:
            self.token = ""
        return before

    def wrong(self, expected: str) -> ValueError:
        found = repr(self.token) if self.token else "the end"
        return ValueError(f"the formula has {found} at character {self.start + 1}, where {expected} is expected")

    def sum_(self) -> Evaluate:
        # Every level of brackets, signs and powers passes here or through `signed`, so the depth is counted in both.
        self.depth += 1
        value = self._chain(("+", "-"), self.product)
        self.depth -= 1
        return value

    def product(self) -> Evaluate:
        return self._chain(("*", "/"), self.signed)

    def _chain(self, operators: tuple[str, ...], part: Callable[[], Evaluate]) -> Evaluate:
        first, rest = part(), list[tuple[Callable[[float, float], float], Evaluate]]()
        while self.token in operators:
            rest.append((OPERATORS[self.next()], part()))
        if not rest:
            return first
        # A loop and not nested calls: a sum of a thousand terms must not need a thousand frames.
        return lambda names: reduce(lambda left, pair: pair[0](left, pair[1](names)), rest, first(names))

    def signed(self) -> Evaluate:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ValueError(f"the formula is nested more than {MAX_DEPTH} levels deep")
        if self.token in ("+", "-"):
            minus, value = self.next() == "-", self.signed()
            signed: Evaluate = (lambda names: -value(names)) if minus else value
        else:
            signed = self.power()
        self.depth -= 1
        return signed

    def power(self) -> Evaluate:
        base = self.atom()
        if self.token != "^":
            return base
        self.next()
        exponent = self.signed()
        return lambda names: math.pow(base(names), exponent(names))

    def atom(self) -> Evaluate:
        if not self.token or self.token in "+-*/^),":
            raise self.wrong("a number, a name or a bracket")
        token = self.next()
        if token == "(":
            inside = self.sum_()
            self._close()
            return inside
        if token[0].isdigit() or token[0] == ".":
            number = float(token)
            return lambda names: number
        if self.token == "(":
            return self._called(token)
        # Collected while reading, so that a name which is no grader is told at creation and not at the first answer.
        self.names.add(token)
        return lambda names: names[token]

    def _called(self, name: str) -> Evaluate:
        if name not in FUNCTIONS:
            raise ValueError(f"the formula calls {name[:40]!r}; there are {', '.join(FUNCTIONS)}")
        self.next()
        arguments = [self.sum_()]
        while self.token == ",":
            self.next()
            arguments.append(self.sum_())
        self._close()
        fewest, most, function = FUNCTIONS[name]
        if not fewest <= len(arguments) <= most:
            raise ValueError(f"the formula gives {name} {len(arguments)} arguments; it takes {fewest} to {most}")
        return lambda names: function(*(argument(names) for argument in arguments))

    def _close(self) -> None:
        if self.token != ")":
            raise self.wrong("a closing bracket")
        self.next()

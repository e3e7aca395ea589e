"""Finds the end of a JSON object in a text that is still growing.

Follows strings, escapes and brackets in linear time, and refuses what can no longer become JSON where that is cheap to
see. It builds no values: whether the finished text is valid is for `strict_json` to say.
"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

DEEPEST = 200  # levels of nesting; json.loads recurses

# Bounded repetitions, because the regular expression engine keeps a frame for each.
_BETWEEN = re.compile(r'(?:[ \t\n\r,:+\-.0-9A-Za-z]+|"[^"\\\x00-\x1f]*"){0,1000}')
_INSIDE = re.compile(r'[^"\\\x00-\x1f]*(?:\\[^\x00-\x1f][^"\\\x00-\x1f]*){0,1000}')
_SIGNS = re.compile(r'"(?:[^"\\]|\\.)*(?:"|$)|[{}\[\],]', re.DOTALL)
_CLOSING = {"{": "}", "[": "]"}


def strict_json(text: str) -> Any:
    """A text's value; ValueError where it is no JSON, or none that can be passed on: NaN, or half a character."""
    try:
        value = json.loads(text, parse_constant=_refuse)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def whole_part(text: str) -> Any:
    """The value of a JSON object that is cut off anywhere: what stands there whole, as clients read a stream of it."""
    whole, brackets = 0, list[str]()  # behind the last bracket or before the last comma, and what is open
    for sign in _SIGNS.finditer(text):
        match sign.group():
            case "{" | "[" as bracket:
                brackets.append(_CLOSING[bracket])
            case "}" | "]":
                brackets.pop()
            case string if string != ",":
                continue
        whole = sign.start() if sign.group() == "," else sign.end()
    closing = "".join(reversed(brackets))
    try:
        # With a value that stands whole this succeeds; within one, what follows the last whole value is left out.
        return json.loads(text + closing)
    except ValueError:
        return json.loads(text[:whole] + closing) if whole else {}


class JsonScan:
    """Begins at the object's brace. `done` behind its last one, `broken` at a character that cannot stand there."""

    def __init__(self) -> None:
        self.closing: list[str] = []  # the brackets that are still to come
        self.quoted = self.escaped = False
        self.done = self.broken = False

    def scan(self, text: str, position: int) -> int:
        """Goes on at `at`; returns how far the object goes in this text."""
        while position < len(text) and not (self.done or self.broken):
            position = self._inside(text, position) if self.quoted else self._between(text, position)
        return position

    def _inside(self, text: str, position: int) -> int:
        if not self.escaped:
            position = _INSIDE.match(text, position).end()  # type: ignore[union-attr]  # it matches nothing, too
        if position == len(text):
            return position
        character = text[position]
        if character < " ":
            self.broken = True
            return position
        if self.escaped:
            self.escaped = False
        elif character == '"':
            self.quoted = False
        else:
            self.escaped = True
        return position + 1

    def _between(self, text: str, position: int) -> int:
        begin, position = position, _BETWEEN.match(text, position).end()  # type: ignore[union-attr]  # it matches nothing, too
        if position == len(text):
            return position
        character = text[position]
        if character == '"':
            self.quoted = True
        elif character in _CLOSING and len(self.closing) < DEEPEST:
            self.closing.append(_CLOSING[character])
        elif self.closing and character == self.closing[-1]:
            self.closing.pop()
            self.done = not self.closing
        else:
            # Behind a thousand repetitions any character may follow; one that matched nothing is wrong.
            self.broken = position == begin
            return position
        return position + 1

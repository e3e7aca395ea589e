"""Takes out of messages what must not be kept: kinds that have names here, and what the operator's expressions match.

An expression is matched by RE2, whose time grows with the text alone: a bad one cannot hold the server up. It finds
texts as they look, and promises nothing about what looks otherwise.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from loreloop.protocol.errors import BadRequest
from loreloop.text.phones import without_phones

# Bounded repeats, each followed by what it cannot match itself, so that none of them backtracks far.
EXPRESSIONS = {
    "email": r"[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}",
    "card": r"(?<!\d)(?:\d{4}[ -]?){3}\d{1,7}(?!\d)",
    "iban": r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)",
    "ip": r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.])",
    "key": r"(?<!\w)(?:sk|pk|tml|ghp|xox[a-z])[-_][A-Za-z0-9_-]{16,256}",
}
KINDS = (*EXPRESSIONS, "phone")  # a phone number has too many readings for an expression
NO_RE2 = "Expressions are matched by RE2, which is not installed: pip install 'loreloop[redact]', or name kinds only."
Substitute = Callable[[str], str]


class Redactor:
    """Applies rules in their order; what one has taken out no later one sees."""

    def __init__(self, rules: tuple[str, ...]) -> None:
        self.substitutes = [_substitute(rule) for rule in rules]

    def text(self, text: str) -> str:
        """The text with `[kind]` in place of what was found, `[redacted]` for an expression's."""
        for substitute in self.substitutes:
            text = substitute(text)
        return text

    def message(self, message: dict[str, Any]) -> dict[str, Any]:
        """A chat message with all its texts looked at; ids, names of functions and images are left alone."""
        return {name: self._field(name, value) for name, value in message.items()}

    def _field(self, name: str, value: Any) -> Any:
        if name in ("content", "reasoning_content") and isinstance(value, str):
            return self.text(value)
        if name == "content" and isinstance(value, list):
            return [part | {"text": self.text(part["text"])} if "text" in part else part for part in value]
        if name == "tool_calls":
            return [call | {"function": self._function(call["function"])} for call in value]
        return value

    def _function(self, function: dict[str, Any]) -> dict[str, Any]:
        return function | {"arguments": self.text(function["arguments"])}


@lru_cache(maxsize=64)
def redactor(rules: tuple[str, ...]) -> Redactor:
    """The redactor of some rules. BadRequest for a rule that is neither a kind nor an expression."""
    return Redactor(rules)


def _substitute(rule: str) -> Substitute:
    if rule == "phone":
        return without_phones
    if rule in EXPRESSIONS:
        pattern = re.compile(EXPRESSIONS[rule])
        return lambda text: pattern.sub(f"[{rule}]", text)
    try:
        re2 = importlib.import_module("re2")
    except ImportError:
        raise BadRequest(
            f"redact holds {rule[:80]!r}, which is none of {', '.join(KINDS)}, and so an expression. {NO_RE2}"
        ) from None
    options = re2.Options()
    options.max_mem, options.log_errors = 8 << 20, False
    try:
        expression = re2.compile(rule, options=options)
    except re2.error as error:
        raise BadRequest(f"redact holds {rule[:80]!r}, which is no expression of RE2: {_words(error)}.") from None
    # An expression that matches nothing at all would put a mark between all letters.
    if expression.search("") is not None:
        raise BadRequest(f"redact holds {rule[:80]!r}, which matches the empty text; say what is to be found.")
    return lambda text: str(expression.sub("[redacted]", text))


def _words(error: Exception) -> str:
    # The library gives its own message as bytes.
    (message,) = error.args
    return message.decode(errors="replace") if isinstance(message, bytes) else str(message)

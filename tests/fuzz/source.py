"""Bytes as a row of choices, and values of any type of ours out of them: mostly such as the type takes, at times not.

The same bytes give the same value, so that a guided fuzzer learns which choice led where, and a fault can be repeated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

T = TypeVar("T")
NOTHING: Mapping[str, Sequence[Any]] = {}
DEEPEST, LONGEST = 5, 4
NUMBERS = (
    0,
    1,
    2,
    3,
    7,
    8,
    64,
    -1,
    255,
    1000,
    4096,
    1 << 20,
    (1 << 31) - 1,
    1 << 31,
    (1 << 63) - 1,
    1 << 64,
    -(1 << 63),
)
FRACTIONS = (0.0, 1.0, 0.5, -0.5, 2.0, 1e-9, 1e300, -1e300, 5e-324)
TEXTS = (
    *(
        "",
        "fake",
        "org/alias",
        "bot",
        "text",
        "user",
        "assistant",
        "system",
        "tool",
        "auto",
        "none",
        "0",
        "11 12",
        "-1",
    ),
    *(
        "a" * 300,
        "\x00",
        "\n",
        "ſ",
        "é",
        "🐙",
        "\u202e",
        "{{ 1 }}",
        "</think>",
        "<think>",
        "../..",
        "NaN",
        "null",
        "{}",
    ),
    *(
        "image_url",
        "input_text",
        "json_object",
        "json_schema",
        "function",
        "data:image/png;base64,AAAA",
        "http://[",
        "[",
    ),
)
PLAIN: tuple[Any, ...] = (None, True, 0, -1, 0.5, "", "x", [], {}, [[]], {"": {}}, 1 << 70)


class Source:
    """`words` are further texts, such as ids of things that there are; `usual` says what mostly stands in a field."""

    def __init__(self, data: bytes, words: Sequence[str] = (), usual: Mapping[str, Sequence[Any]] = NOTHING) -> None:
        self.data, self.at, self.words, self.usual = data, 0, (*TEXTS, *words), usual

    def byte(self) -> int:
        """The next byte; zeros where the bytes are at their end."""
        self.at += 1
        return self.data[self.at - 1] if self.at <= len(self.data) else 0

    def pick(self, values: Sequence[T]) -> T:
        """One of several."""
        return values[(self.byte() << 8 | self.byte()) % len(values)]

    def some(self, n: int) -> bytes:
        """The next bytes as they are, `n` at most."""
        found = self.data[self.at : self.at + n]
        self.at += n
        return found

    def rest(self) -> bytes:
        """All that is left."""
        return self.some(len(self.data))

    def text(self) -> str:
        """A word, or bytes read as a text."""
        if self.byte() % 4:
            return self.pick(self.words)
        return self.some(self.byte() % 32).decode("utf-8", "replace")

    def plain(self, depth: int = 0) -> Any:
        """Any JSON."""
        kind = self.byte() % 8
        if kind < 4 or depth > DEEPEST:
            return self.pick(PLAIN)
        if kind < 6:
            return self.text()
        n = range(self.byte() % LONGEST)
        return [self.plain(depth + 1) for _ in n] if kind == 6 else {self.text(): self.plain(depth + 1) for _ in n}


def made(source: Source, kind: Any) -> Any:
    """Something that is to be sent as a value of this type."""
    return _made(source, inspect.type_info(kind), 0)


def _made(source: Source, kind: inspect.Type, depth: int) -> Any:
    while isinstance(kind, inspect.Metadata):
        kind = kind.type
    if source.byte() > 247:
        return source.plain()
    match kind:
        case inspect.StructType():
            return _struct(source, kind, depth)
        case inspect.UnionType():
            return _made(source, source.pick(kind.types), depth)
        case inspect.LiteralType():
            return source.pick(kind.values)
        case inspect.VarTupleType() | inspect.ListType():
            n = max(_length(source, depth), (kind.min_length or 0) if source.byte() % 8 else 0)
            return [_made(source, kind.item_type, depth + 1) for _ in range(n)]
        case inspect.DictType():
            return {source.text(): _made(source, kind.value_type, depth + 1) for _ in range(_length(source, depth))}
    return _leaf(source, kind)


def _leaf(source: Source, kind: inspect.Type) -> Any:
    match kind:
        case inspect.BoolType():
            return bool(source.byte() & 1)
        case inspect.IntType():
            return source.pick(NUMBERS) if source.byte() % 2 else source.byte() % 8
        case inspect.FloatType():
            return source.pick(FRACTIONS)
        case inspect.StrType():
            return source.text()
        case inspect.NoneType():
            return None
    return source.plain()


def _struct(source: Source, kind: inspect.StructType, depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for field in kind.fields:
        # What must be there mostly is; of what need not be, some, and nothing that would nest for ever.
        wanted = source.byte() < 250 if field.required else depth < DEEPEST and source.byte() % 4 == 1
        if wanted:
            usual = source.usual.get(field.encode_name) if source.byte() % 8 else None
            value[field.encode_name] = source.pick(usual) if usual else _made(source, field.type, depth + 1)
    if kind.tag_field is not None:
        value[kind.tag_field] = kind.tag
    if source.byte() > 250:
        value[source.text()] = source.plain()
    return value


def _length(source: Source, depth: int) -> int:
    return 0 if depth > DEEPEST else source.byte() % LONGEST


def as_json(value: Any) -> bytes:
    """What is sent."""
    return msgspec.json.encode(value)

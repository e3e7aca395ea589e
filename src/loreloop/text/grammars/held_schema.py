"""A caller's JSON schema as far as a grammar can hold it, and what was left out of it, by its place.

An object that names its properties has no others unless its schema says so: a model that may go on with names of its
own does not come to an end. Knows no grammar: what can be held of patterns and formats is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Schema = dict[str, Any]
UNHELD = {
    *("contains", "minContains", "maxContains", "not", "if", "then", "else", "dependentRequired", "dependentSchemas"),
    *("dependencies", "propertyNames", "unevaluatedProperties", "unevaluatedItems", "uniqueItems"),
    *("$dynamicRef", "$dynamicAnchor", "$recursiveRef", "$recursiveAnchor"),
}
TYPES = frozenset({"object", "array", "string", "number", "integer", "boolean", "null"})
ONE = ("additionalProperties", "additionalItems", "items")  # keywords that hold a schema,
LISTS = ("anyOf", "oneOf", "allOf", "prefixItems", "items")  # a list of them,
NAMED = ("properties", "patternProperties", "$defs", "definitions")  # or some by their names
COMBINING = ("anyOf", "oneOf", "allOf", "$ref")
OPENING = ("additionalProperties", "patternProperties", "unevaluatedProperties")
MAX_ROUNDS = 16


@dataclass
class Holding:
    """One walk through a schema. `fits` says whether a small schema can be held exactly."""

    fits: Callable[[Schema], bool]
    root: Schema
    kept_open: frozenset[str] = frozenset()  # references to definitions that are combined with other schemas
    left_out: list[str] = field(default_factory=list)
    combined: set[str] = field(default_factory=set)

    def of(self, schema: Any, place: str, *, closes: bool = True) -> Any:
        """`closes`: nothing outside of this schema says more of the same object."""
        if not isinstance(schema, dict):
            return schema
        # A definition that is combined with another schema somewhere must admit the other's properties everywhere.
        closes = closes and place not in self.kept_open
        held = {key: value for key, value in schema.items() if self._holds(schema, key, value, place)}
        alone = closes and not _is_combined(held)
        if not alone and isinstance(held.get("$ref"), str):
            self.combined.add(held["$ref"])
        for key in [key for key in held if key in (*ONE, *LISTS, *NAMED)]:
            held[key] = self._inside(key, held[key], f"{place}/{key}", closes=alone or key not in COMBINING)
        if "oneOf" in held and not self._is_exclusive(held["oneOf"]):
            self._leave_out("oneOf", place, "held as anyOf")
            held["allOf"] = [*held.get("allOf", ()), {"anyOf": held.pop("oneOf")}]
        if _is_closed(schema) or (alone and _names_all(schema)):
            held["additionalProperties"] = False
        return held

    def _inside(self, key: str, value: Any, place: str, *, closes: bool) -> Any:
        if isinstance(value, list) and key in LISTS:
            return [self.of(one, f"{place}/{index}", closes=closes) for index, one in enumerate(value)]
        if isinstance(value, dict) and key in NAMED:
            return {name: self.of(one, f"{place}/{name}") for name, one in value.items()}
        return self.of(value, place)

    def _holds(self, schema: Schema, key: str, value: Any, place: str) -> bool:
        """Whether a keyword stays; what has no meaning as it is, is the library's to refuse."""
        match key:
            case "uniqueItems" if value is False:
                return False
            case "unevaluatedProperties" if _is_closed(schema):
                return False  # held as additionalProperties
            case "$schema":
                return isinstance(value, str) and "json-schema.org" in value
            case "format" if not _may_be(schema, "string"):
                return False  # it says something of strings alone
            case "format" | "pattern" if isinstance(value, str):
                holds = self.fits({"type": "string", key: value})
            case "patternProperties" if isinstance(value, dict):
                holds = all(self.fits({"type": "string", "pattern": pattern}) for pattern in value)
            case "type":
                words = value if isinstance(value, list) else [value]
                holds = all(word in TYPES for word in words if isinstance(word, str))
            case "$ref" if isinstance(value, str):
                holds = value.startswith("#")
            case "minProperties" | "maxProperties":
                names = schema.get("properties", {})
                holds = not isinstance(names, dict) or set(names) <= _required(schema)
            case _:
                holds = key not in UNHELD
        if not holds:
            self._leave_out(key, place, repr(value)[:60] if key in ("format", "pattern", "type", "$ref") else "")
        return holds

    def _is_exclusive(self, options: Any) -> bool:
        """Whether the library can tell that no two of them hold at once, and so holds them as they are."""
        definitions: Schema = {key: self.root[key] for key in ("$defs", "definitions") if key in self.root}
        return self.fits({**definitions, "oneOf": options})

    def _leave_out(self, key: str, place: str, about: str) -> None:
        self.left_out.append(f"{key} at {place}" + (f" ({about})" if about else ""))


@dataclass(frozen=True)
class Held:
    """`left_out`: keywords and where they stand, as `format at #/properties/a ('binary')`."""

    schema: Schema
    left_out: tuple[str, ...]


def held(schema: Schema, fits: Callable[[Schema], bool]) -> Held:
    """The schema as a grammar can hold it; `fits` says whether a small schema can be held exactly. Walks again while
    it finds definitions that are combined with others, which must then be kept open."""
    kept_open: frozenset[str] = frozenset()
    for _ in range(MAX_ROUNDS):
        walk = Holding(fits, schema, kept_open)
        found = walk.of(schema, "#")
        if walk.combined <= kept_open:
            return Held(found, tuple(dict.fromkeys(walk.left_out)))
        kept_open |= walk.combined
    return Held(found, tuple(dict.fromkeys(walk.left_out)))


def _may_be(schema: Schema, kind: str) -> bool:
    words = schema.get("type", kind)
    return kind in words if isinstance(words, list) else words == kind


def _required(schema: Schema) -> set[str]:
    names = schema.get("required", ())
    return {name for name in names if isinstance(name, str)} if isinstance(names, list | tuple) else set()


def _is_combined(schema: Schema) -> bool:
    """Whether several schemas speak of the same object, so that none knows all of its properties."""
    several = [key for key in ("properties", *COMBINING) if key in schema]
    every = schema.get("allOf", ())
    return len(several) > 1 or (isinstance(every, list) and len(every) > 1)


def _names_all(schema: Schema) -> bool:
    names, least = schema.get("properties"), schema.get("minProperties", 0)
    if not isinstance(names, dict) or not names or any(key in schema for key in OPENING):
        return False
    return _required(schema) <= set(names) and not (isinstance(least, int) and least > len(names))


def _is_closed(schema: Schema) -> bool:
    others = any(key in schema for key in (*COMBINING, "additionalProperties", "patternProperties"))
    return schema.get("unevaluatedProperties") is False and not others

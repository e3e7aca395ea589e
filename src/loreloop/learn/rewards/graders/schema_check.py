"""Whether a value fits a JSON schema, and where it does not. It imports nothing of ours: the sandbox can run it.

Of draft 2020-12 it knows the keywords below; `unknown_keywords` finds others, so that none is passed over in silence.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

NOTES = {"title", "description", "default", "examples", "$schema", "$id", "$comment", "$defs", "definitions", "format"}
HOLDING_ONE = {"not", "items", "additionalProperties", "propertyNames", "contains", "if", "then", "else"}
HOLDING_LIST, HOLDING_NAMED = {"allOf", "anyOf", "oneOf", "prefixItems"}, {"properties", "patternProperties", "$defs"}
PLAIN = {
    *("type", "enum", "const", "$ref", "required", "minProperties", "maxProperties", "minItems", "maxItems"),
    *("uniqueItems", "minLength", "maxLength", "pattern", "minimum", "maximum", "exclusiveMinimum"),
    *("exclusiveMaximum", "multipleOf", "minContains", "maxContains", "dependentRequired"),
}
TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
MAX_STEPS = 100_000
MAX_DEPTH = 100


def unknown_keywords(schema: Any) -> list[str]:
    """Paths of keywords that are not known here."""
    found: list[str] = []
    open_: list[tuple[str, Any]] = [("schema", schema)]
    while open_:
        path, one = open_.pop()
        if not isinstance(one, dict):
            found += [] if isinstance(one, bool) else [path]
            continue
        for name, value in one.items():
            place = f"{path}.{name}"
            if name in HOLDING_ONE:
                open_.append((place, value))
            elif name in HOLDING_LIST and isinstance(value, list):
                open_ += [(f"{place}[{number}]", each) for number, each in enumerate(value)]
            elif name in HOLDING_NAMED | {"definitions"} and isinstance(value, dict):
                open_ += [(f"{place}.{key}", each) for key, each in value.items()]
            elif name not in PLAIN | NOTES:
                found.append(place)
    return found


def first_fault(schema: Any, value: Any) -> str | None:
    """Where the value does not fit first, in words; None where it fits. ValueError where the schema is wrong or the
    work too much."""
    return _Check(schema).fault(schema, value, "$", 0)


class _Check:
    def __init__(self, root: Any) -> None:
        self.root, self.steps = root, 0

    def fault(self, schema: Any, value: Any, at: str, depth: int) -> str | None:
        self.steps += 1
        if self.steps > MAX_STEPS or depth > MAX_DEPTH:
            raise ValueError("the schema takes too much work to check")
        if isinstance(schema, bool):
            return None if schema else f"{at}: nothing may stand here"
        checks = (_plain, self.references, self.combinations, self.of_object, self.of_array)
        for check in checks:
            if fault := check(schema, value, at, depth):
                return fault
        return None

    def references(self, schema: Any, value: Any, at: str, depth: int) -> str | None:
        if "$ref" not in schema:
            return None
        target = self.root
        for step in str(schema["$ref"]).removeprefix("#").strip("/").split("/"):
            step = step.replace("~1", "/").replace("~0", "~")
            target = target.get(step) if step and isinstance(target, dict) else target
        if target is None:
            raise ValueError(f"$ref {schema['$ref']!r} leads nowhere")
        return self.fault(target, value, at, depth + 1)

    def combinations(self, schema: Any, value: Any, at: str, depth: int) -> str | None:
        for one in schema.get("allOf", ()):
            if fault := self.fault(one, value, at, depth + 1):
                return fault
        for name in ("anyOf", "oneOf"):
            n_fitting = sum(self.fault(one, value, at, depth + 1) is None for one in schema.get(name, ()))
            if name in schema and (n_fitting == 0 or (name == "oneOf" and n_fitting > 1)):
                return f"{at}: {n_fitting} of {name} fit"
        if "not" in schema and self.fault(schema["not"], value, at, depth + 1) is None:
            return f"{at}: not"
        if "if" in schema:
            branch = "then" if self.fault(schema["if"], value, at, depth + 1) is None else "else"
            return self.fault(schema.get(branch, True), value, at, depth + 1)
        return None

    def of_object(self, schema: Any, value: Any, at: str, depth: int) -> str | None:
        if not isinstance(value, dict):
            return None
        if missing := [name for name in schema.get("required", ()) if name not in value]:
            return f"{at}: {missing[0]!r} is missing"
        for name, others in schema.get("dependentRequired", {}).items():
            if name in value and (missing := [other for other in others if other not in value]):
                return f"{at}: {missing[0]!r} is missing beside {name!r}"
        if not schema.get("minProperties", 0) <= len(value) <= schema.get("maxProperties", len(value)):
            return f"{at}: {len(value)} properties"
        own, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
        for name, each in value.items():
            fitting = [sub for pattern, sub in patterns.items() if re.search(pattern, name)]
            fitting += [own[name]] if name in own else []
            for sub in fitting or [schema.get("additionalProperties", True)]:
                if fault := self.fault(sub, each, f"{at}.{name}", depth + 1):
                    return fault
            if fault := self.fault(schema.get("propertyNames", True), name, f"{at}.{name}", depth + 1):
                return fault
        return None

    def of_array(self, schema: Any, value: Any, at: str, depth: int) -> str | None:
        if not isinstance(value, list):
            return None
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            return f"{at}: {len(value)} items"
        if schema.get("uniqueItems") and len({_canonical(each) for each in value}) < len(value):
            return f"{at}: an item comes twice"
        first = schema.get("prefixItems", ())
        for number, each in enumerate(value):
            sub = first[number] if number < len(first) else schema.get("items", True)
            if fault := self.fault(sub, each, f"{at}[{number}]", depth + 1):
                return fault
        if "contains" in schema:
            n = sum(self.fault(schema["contains"], each, at, depth + 1) is None for each in value)
            if not schema.get("minContains", 1) <= n <= schema.get("maxContains", n):
                return f"{at}: {n} items fit contains"
        return None


def _plain(schema: Any, value: Any, at: str, depth: int) -> str | None:
    kinds = schema.get("type")
    if kinds is not None and not any(_is(value, kind) for kind in ([kinds] if isinstance(kinds, str) else kinds)):
        return f"{at}: no {kinds}"
    if "enum" in schema and not any(same(value, one) for one in schema["enum"]):
        return f"{at}: none of the enum"
    if "const" in schema and not same(value, schema["const"]):
        return f"{at}: not the const"
    if isinstance(value, str):
        if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
            return f"{at}: {len(value)} characters"
        if "pattern" in schema and not re.search(schema["pattern"], value):
            return f"{at}: does not fit the pattern"
    return _number(schema, value, at) if _is(value, "number") else None


def _number(schema: Any, value: Any, at: str) -> str | None:
    too_small = value < schema.get("minimum", value) or value <= schema.get("exclusiveMinimum", -math.inf)
    too_large = value > schema.get("maximum", value) or value >= schema.get("exclusiveMaximum", math.inf)
    if too_small or too_large:
        return f"{at}: {value} is out of range"
    step = schema.get("multipleOf")
    if not step:
        return None
    # Whole numbers are divided as such: a share in floats is wrong from 2^53 on, and overflows some time later.
    if isinstance(value, int) and isinstance(step, int):
        return f"{at}: no multiple" if value % step else None
    share = value / step
    # A share beyond all floats has no digits behind the point that could say otherwise.
    near = not math.isfinite(share) or abs(share - round(share)) <= 1e-9 * max(1, abs(share))
    return None if near else f"{at}: no multiple"


def _canonical(value: Any) -> str:
    """Texts that are equal where the values are as JSON: 1 and 1.0 are, true and 1 are not."""
    return json.dumps(_whole(value), sort_keys=True)


def _whole(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_whole(each) for each in value]
    return {name: _whole(each) for name, each in value.items()} if isinstance(value, dict) else value


def _is(value: Any, kind: str) -> bool:
    if kind in ("number", "integer"):
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        return not isinstance(value, bool) and (whole or (kind == "number" and isinstance(value, float)))
    return isinstance(value, TYPES[kind]) if kind in TYPES else False


def same(a: Any, b: Any) -> bool:
    """Equal as JSON: true is not 1."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    return bool(a == b)

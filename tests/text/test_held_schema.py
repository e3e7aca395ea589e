"""Callers' schemas as far as a grammar holds them: what is left out is named, what is held is satisfied by every text
that the grammar lets through, and objects that name their properties come to an end."""

import json
import random
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLTokenizer

from loreloop.protocol.errors import BadRequest
from loreloop.text.grammars.grammar import Grammars, is_held, json_schema_grammar
from loreloop.text.grammars.held_schema import Held, held
from loreloop.text.grammars.sandbox import Rules, WantedSchema
from loreloop.text.grammars.sandbox_process import held_schemas

DECIMAL = r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$"
BYTES = Grammars(LLTokenizer("byte"), 257)
CLOSED = {"additionalProperties": False}


def holding(schema: dict[str, Any]) -> Held:
    return held(schema, lambda small: is_held(json.dumps(small)))


@pytest.mark.parametrize(
    ("schema", "left_out", "rest"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems at #", {"type": "array"}),
        ({"type": "array", "uniqueItems": False}, "", {"type": "array"}),
        ({"type": "string", "format": "binary"}, "format at # ('binary')", {"type": "string"}),
        ({"type": "string", "format": "date"}, "", {"type": "string", "format": "date"}),
        ({"type": "integer", "format": "int32"}, "", {"type": "integer"}),
        ({"type": "string", "pattern": DECIMAL}, f"pattern at # ({DECIMAL!r})", {"type": "string"}),
        ({"type": "string", "pattern": r"\bx\b"}, "pattern at # ('\\\\bx\\\\b')", {"type": "string"}),
        ({"type": "STRING"}, "type at # ('STRING')", {}),
        ({"$ref": "http://x/y"}, "$ref at # ('http://x/y')", {}),
        ({"not": {"type": "null"}}, "not at #", {}),
        (
            {"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 3}]},
            "oneOf at # (held as anyOf)",
            {"allOf": [{"anyOf": [{"type": "string"}, {"type": "string", "maxLength": 3}]}]},
        ),
        ({"oneOf": [{"type": "string"}, {"type": "null"}]}, "", {"oneOf": [{"type": "string"}, {"type": "null"}]}),
        (
            {"type": "object", "properties": {"a": {}}, "minProperties": 1},
            "minProperties at #",
            {"type": "object", "properties": {"a": {}}, **CLOSED},
        ),
        ({"type": "object", "unevaluatedProperties": False}, "", {"type": "object", **CLOSED}),
    ],
)
def test_what_cannot_be_held_is_left_out_by_name(schema: dict[str, Any], left_out: str, rest: dict[str, Any]) -> None:
    found = holding(schema)
    assert (", ".join(found.left_out), found.schema) == (left_out, rest)
    inside = holding({"type": "object", "properties": {"p": schema}, "$defs": {"d": {"items": schema}}})
    assert inside.schema["properties"]["p"] == rest == inside.schema["$defs"]["d"]["items"]
    assert ("#/properties/p" in str(inside.left_out)) is bool(left_out)


A, B = {"properties": {"a": {"type": "integer"}}}, {"properties": {"b": {"type": "integer"}}}


def test_an_object_has_the_properties_that_it_names() -> None:
    assert holding(A).schema == {**A, **CLOSED}
    assert holding({"anyOf": [A, B]}).schema == {"anyOf": [{**A, **CLOSED}, {**B, **CLOSED}]}
    assert holding({"items": A}).schema["items"] == {**A, **CLOSED}
    assert holding({"allOf": [{"$ref": "#/$defs/x"}], "$defs": {"x": A}}).schema["$defs"]["x"] == {**A, **CLOSED}
    for opened in ({**A, "additionalProperties": {"type": "string"}}, {**A, "patternProperties": {"^x": {}}}):
        assert holding(opened).schema == opened
    assert holding({**A, "required": ["z"]}).schema == {**A, "required": ["z"]}
    assert holding({"type": "object"}).schema == {"type": "object"}


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [A, B]},
        {**A, "allOf": [B]},
        {**A, "anyOf": [B, {"required": ["a"]}]},
        {"allOf": [{"$ref": "#/$defs/x"}, B], "$defs": {"x": A}},
        {"$ref": "#/$defs/x", **B, "$defs": {"x": {"$ref": "#/$defs/y"}, "y": A}},
    ],
)
def test_schemas_of_the_same_object_do_not_close_each_other(schema: dict[str, Any]) -> None:
    found = holding({"type": "object", **schema, "required": ["a", "b"]})
    assert CLOSED.keys().isdisjoint(found.schema)
    assert "additionalProperties" not in json.dumps(found.schema)


def test_a_strict_schema_is_held_or_refused_by_its_keyword_and_place() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    loose = held_schemas([WantedSchema("the response format", schema, False), WantedSchema("the tool 'f'", A, True)])
    assert loose.left_out == ("uniqueItems at #/properties/a of the response format",)
    assert loose.error is None
    strict = held_schemas([WantedSchema("the tool 'f'", schema, True)])
    assert "tool 'f' is strict" in (strict.error or "")
    assert "uniqueItems at #/properties/a" in (strict.error or "")


SCALARS = st.sampled_from(
    [
        {"type": "string", "maxLength": 3},
        {"type": "string", "format": "password", "maxLength": 2},
        {"type": "string", "pattern": "^[ab]{1,3}$"},
        {"type": "string", "pattern": DECIMAL, "maxLength": 4},
        {"type": "integer", "minimum": -5, "maximum": 20, "format": "int32"},
        {"type": "number", "minimum": 0, "maximum": 9, "multipleOf": 0.5},
        {"type": "boolean"},
        {"type": ["null", "integer"], "maximum": 9, "minimum": 0},
        {"enum": ["x", 1, None, {"a": [1]}]},
        {"const": [True]},
        {"type": "string", "format": "date"},
        {"$ref": "#/$defs/leaf"},
        {"$ref": "https://elsewhere/y", "type": "boolean"},
    ]
)


def composed(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    names = st.dictionaries(st.sampled_from("abcd"), inner, max_size=3)
    objects = st.builds(
        lambda properties, required, extra: {
            "type": "object",
            "properties": properties,
            "required": [name for name in properties if name in required],
            **extra,
        },
        names,
        st.sets(st.sampled_from("abcd")),
        st.sampled_from([{}, CLOSED, {"unevaluatedProperties": False}, {"minProperties": 0}, {"title": "t"}]),
    )
    arrays = st.builds(
        lambda items, extra: {"type": "array", "items": items, "maxItems": 3, **extra},
        inner,
        st.sampled_from([{}, {"uniqueItems": True}, {"minItems": 1}, {"contains": {}}]),
    )
    several = st.lists(inner, min_size=1, max_size=3)
    choices = st.builds(lambda key, options: {key: options}, st.sampled_from(["anyOf", "oneOf"]), several)
    both = st.builds(lambda one, other: {"allOf": [one, other]}, objects, objects)
    return st.one_of(objects, arrays, choices, both)


SCHEMAS = st.recursive(SCALARS, composed, max_leaves=8)


def drawn(grammar: str, chance: random.Random) -> str | None:
    """A text that the grammar lets through, or None where it is long."""
    text, followed = bytearray(), BYTES.constraint(grammar)
    for _ in range(400):
        allowed = followed.allowed().nonzero()[0].tolist()
        printable = [token for token in allowed if token == 256 or 32 <= token < 127]
        token = 256 if 256 in allowed and chance.random() < 0.5 else chance.choice(printable or allowed)
        if token == 256:
            return text.decode()
        text.append(token)
        followed.take(token)
        if followed.over:
            return text.decode()
    return None


@settings(max_examples=150, deadline=None)
@given(schema=SCHEMAS, seed=st.integers(0, 1 << 30))
def test_what_is_drawn_satisfies_what_was_held(schema: dict[str, Any], seed: int) -> None:
    schema = {**schema, "$defs": {"leaf": {"type": "integer", "minimum": 0, "maximum": 3}}}
    found = holding(schema)
    try:
        grammar = json_schema_grammar(found.schema)
        BYTES.built(grammar)
    except BadRequest as error:
        assert "nsatisfiable" in error.message or "incompatible" in error.message, (schema, error.message)  # noqa: PT017
        return
    for at in range(3):
        text = drawn(grammar, random.Random(seed + at))
        if text is not None:
            jsonschema.validate(json.loads(text), found.schema)
            if not found.left_out:
                jsonschema.validate(json.loads(text), schema)


def test_the_rules_of_a_held_schema_are_those_that_are_followed() -> None:
    found = holding({"type": "object", "properties": {"d": {"type": "string", "pattern": DECIMAL}}, "required": ["d"]})
    text = drawn(json_schema_grammar(found.schema), random.Random(1))
    assert Rules(json_schema=found.schema).json_schema
    assert text is None or set(json.loads(text)) == {"d"}

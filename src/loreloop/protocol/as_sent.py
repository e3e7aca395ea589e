"""A body as a client sent it to the value it means: what is null, a note or neutral is taken out of every struct in it.

Goes by the structs' own types, so data of the caller (schemas, arguments, metadata) keeps its nulls. Knows no dialect.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import msgspec
from msgspec import inspect

from loreloop.protocol.hints import ADVICE, EVERYWHERE, NEUTRAL, NOTES

Clean = Callable[[Any], Any]
NUMBERS = (inspect.IntType, inspect.FloatType)


def cleaned(value: Any, kind: type[msgspec.Struct]) -> Any:
    """`value` is JSON's; what has not the form of `kind` stays as it is, for the conversion to refuse."""
    return _of_kind(kind)(value)


@lru_cache(maxsize=64)
def _of_kind(kind: type[msgspec.Struct]) -> Clean:
    found = inspect.type_info(kind)
    assert isinstance(found, inspect.StructType)
    return _of_struct(found)


def notes_of(kind: type) -> frozenset[str]:
    """Names of the fields that a struct lets pass and forgets."""
    return EVERYWHERE.union(*(NOTES.get(base, frozenset()) for base in kind.__mro__))


def neutral_of(kind: type) -> Mapping[str, tuple[Any, ...]]:
    """By field name, the values with which a struct's field asks for nothing, and so passes."""
    return {name: values for base in kind.__mro__ for name, values in NEUTRAL.get(base, {}).items()}


def advice_of(kind: type, name: str) -> str:
    """What a client can do in place of a field that is refused; part of the message that refuses it."""
    return next((ADVICE[base][name] for base in kind.__mro__ if name in ADVICE.get(base, {})), "leave it out")


def _of_struct(info: inspect.StructType) -> Clean:
    notes, neutral = notes_of(info.cls), neutral_of(info.cls)
    inner = {field.encode_name: clean for field in info.fields if (clean := _of_type(field.type))}
    looked_at = notes | neutral.keys() | inner.keys()

    def clean_struct(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        # Returned as it is, without a copy: long conversations have thousands of such structs.
        if looked_at.isdisjoint(value) and None not in value.values():
            return value  # as nearly all are, where there are many
        return {
            name: inner[name](entry) if name in inner else entry
            for name, entry in value.items()
            if entry is not None and name not in notes and not _means_nothing(entry, neutral.get(name, ()))
        }

    return clean_struct


def _means_nothing(entry: Any, values: tuple[Any, ...]) -> bool:
    # Types are compared too, because False equals 0 and 1.0 equals 1 in Python.
    return any(type(entry) is type(value) and entry == value for value in values)


def _of_type(info: inspect.Type) -> Clean | None:
    """None where no struct can stand in a value of this type."""
    match info:
        case inspect.StructType():
            return _of_struct(info)
        case inspect.Metadata(type=inner):
            return _of_type(inner)
        case inspect.VarTupleType(item_type=item, max_length=most):
            return _of_list(item, most)
        case inspect.UnionType(types=types):
            return _of_union(types)
    return None


def _of_list(item: inspect.Type, most: int | None) -> Clean | None:
    clean = _of_type(item)
    if clean is None:
        return None

    def clean_list(value: Any) -> Any:
        # A list that is too long is refused by the conversion; cleaning it first would cost time for nothing.
        if not isinstance(value, list) or (most is not None and len(value) > most):
            return value
        return [clean(entry) for entry in value]

    return clean_list


def _of_union(types: tuple[inspect.Type, ...]) -> Clean | None:
    structs = [info for info in types if isinstance(info, inspect.StructType)]
    lists = [clean for info in types if not isinstance(info, inspect.StructType) and (clean := _of_type(info))]
    tagged = {info.tag: _of_struct(info) for info in structs}
    if not structs and not lists:
        return None

    def clean_union(value: Any) -> Any:
        if isinstance(value, dict):
            # All structs of a union share one tag field; msgspec accepts no other unions.
            tag = value.get(structs[0].tag_field) if structs and structs[0].tag_field else None
            clean = tagged.get(tag) if isinstance(tag, str) or tag is None else None
            return clean(value) if clean else value
        return lists[0](value) if lists and isinstance(value, list) else value

    return clean_union


def choices_at(kind: type[msgspec.Struct], path: str) -> tuple[str, ...]:
    """What may stand at a path (`$.tools[0].type`) that admits certain words; where it admits numbers beside them, in
    which bounds. Nothing where it admits no words."""
    here: list[inspect.Type] = [inspect.type_info(kind)]
    found: list[Any] = []
    for step in re.findall(r"\.(\w+)|\[", path):
        here = [plain for info in here for plain in _plain(info)]
        if not step:
            here = [info.item_type for info in here if isinstance(info, inspect.VarTupleType)]
            continue
        structs = [info for info in here if isinstance(info, inspect.StructType)]
        fields = [field.type for info in structs for field in info.fields if field.encode_name == step]
        found = [info.tag for info in structs if info.tag_field == step]
        admitted = [info for field in fields for info in _plain(field)]
        words = [value for info in admitted for value in _words(info)]
        # Words alone would say that no number is taken.
        found += [_numbers(info) for info in admitted if words and isinstance(info, NUMBERS)] + words
        here = fields
    return tuple(dict.fromkeys(str(word) for word in found))


def _plain(info: inspect.Type) -> list[inspect.Type]:
    if isinstance(info, inspect.UnionType):
        return [plain for one in info.types for plain in _plain(one)]
    return _plain(info.type) if isinstance(info, inspect.Metadata) else [info]


def _words(info: inspect.Type) -> Sequence[Any]:
    return info.values if isinstance(info, inspect.LiteralType) else ()


def _numbers(info: inspect.IntType | inspect.FloatType) -> str:
    kind = "whole numbers" if isinstance(info, inspect.IntType) else "numbers"
    bounds = (("from", info.ge), ("above", info.gt), ("to", info.le), ("below", info.lt))
    said = [f"{word} {bound:,.10g}" for word, bound in bounds if bound is not None]
    return " ".join([kind, *said])

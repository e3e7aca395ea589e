"""Lines of a file as typed values; what is wrong is told with the line and the very field.

Knows JSON and structs, and not what the lines are for.
"""

from __future__ import annotations

import copy
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import msgspec

from loreloop.protocol.as_sent import choices_at, cleaned
from loreloop.protocol.errors import BadRequest

S = TypeVar("S", bound=msgspec.Struct)
T = TypeVar("T")
MOST_QUOTED = 60  # characters of a wrong value that are shown

_PLACE = re.compile(r" - at `\$(.*)`$")
_UNKNOWN = re.compile(r"unknown field `(.+?)`")
_ANY = "[...]"  # how the library tells that something is wrong in a list, but not in which entry


class Wrong(ValueError):
    """What is wrong with one line: `field` is the path to it, empty for the line as a whole."""

    def __init__(self, field: str, what: str) -> None:
        super().__init__(f"{field} {what}".strip())
        self.field = field


class BadLine(BadRequest):
    """A line of a file cannot be used; lines count from 1."""

    def __init__(self, line: int, wrong: Wrong) -> None:
        super().__init__(f"Line {line}: {wrong}")
        self.line, self.field = line, wrong.field


def examples_of(lines: Iterable[bytes | str], read: Callable[[Any], T]) -> Iterator[T]:
    """An example for each line that is not blank. BadLine for one that is not JSON, or that `read` finds Wrong."""
    for number, line in enumerate(lines, 1):
        text = line.encode() if isinstance(line, str) else line
        # Editors of one system put this mark before a text in UTF-8.
        text = text.removeprefix(b"\xef\xbb\xbf") if number == 1 else text
        if not text.strip():
            continue
        try:
            example = read(_json(text))
        except Wrong as wrong:
            raise BadLine(number, wrong) from None
        except RecursionError:
            raise BadLine(number, Wrong("", "is nested too deeply.")) from None
        yield example


def _json(text: bytes) -> Any:
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Wrong("", f"is not JSON: {error}. Each line is one JSON object by itself, in UTF-8.") from None
    # Of a name that stands twice the library keeps the last, and what the first held would be lost without a word.
    json.loads(text, object_pairs_hook=_once, parse_int=str, parse_float=str)
    return value


def _once(pairs: list[tuple[str, Any]]) -> None:
    if len(dict(pairs)) < len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise Wrong(twice, "stands twice in one object.")


def converted(value: Any, kind: type[S]) -> S:
    """A line's JSON as a struct. Nulls and notes that clients write beside what they mean are left out, as in a
    request's body. Wrong names the field."""
    if not isinstance(value, dict):
        raise Wrong("", f"holds {quoted(value)}; a JSON object belongs there.")
    value = cleaned(value, kind)
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise _wrong(str(error), value, kind) from None


def _wrong(error: str, value: Any, kind: type[msgspec.Struct]) -> Wrong:
    place = match[1] if (match := _PLACE.search(error)) else ""
    path = _with_numbers(place, error, value, kind)
    what = _PLACE.sub("", error)
    if unknown := _UNKNOWN.search(what):
        return Wrong(f"{path}.{unknown[1]}".lstrip("."), "is not known here; leave it out.")
    if "missing required field" in what:
        (name,) = re.findall(r"`(.+?)`", what)[:1]
        return Wrong(f"{path}.{name}".lstrip("."), "is missing.")
    found = f"is {quoted(_at(value, path))}"
    if choices := choices_at(kind, f"${place}"):
        return Wrong(path.lstrip("."), f"{found}; here it is one of {', '.join(choices)}.")
    return Wrong(path.lstrip("."), f"{found}: {what[:1].lower()}{what[1:]}.")


def _with_numbers(place: str, error: str, value: Any, kind: type[msgspec.Struct]) -> str:
    """The path with numbers for the entries of lists: of the first one that is wrong in just this way."""
    tree, numbers = copy.deepcopy(value), list[int]()
    before, *behind = place.split(_ANY)
    path = before
    for rest in behind:
        numbers.append(_first_wrong(_at(tree, path), lambda: _error_of(tree, kind) == error))
        path += f"[0]{rest}"
    return before + "".join(f"[{number}]{rest}" for number, rest in zip(numbers, behind, strict=True))


def _first_wrong(entries: Any, is_wrong: Callable[[], bool]) -> int:
    """The number of the first entry that is wrong by itself, which stands alone in its list afterwards."""
    for number, entry in enumerate(list(entries) if isinstance(entries, list) else ()):
        # The list is changed in its place, so that the conversion can say nothing of other entries.
        entries[:] = [entry]
        if is_wrong():
            return number
    return 0


def _error_of(value: Any, kind: type[msgspec.Struct]) -> str | None:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        return str(error)
    return None


def _at(value: Any, path: str) -> Any:
    """What stands at a path such as `.messages[0].role`; None where there is nothing."""
    for name, number in re.findall(r"\.([^.\[]+)|\[(\d+)\]", path):
        if name:
            value = value.get(name) if isinstance(value, dict) else None
        else:
            value = value[int(number)] if isinstance(value, list) and int(number) < len(value) else None
    return value


def quoted(value: Any) -> str:
    """A value as it is told: in JSON, and not longer than a line."""
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= MOST_QUOTED else f"{text[:MOST_QUOTED]}…"

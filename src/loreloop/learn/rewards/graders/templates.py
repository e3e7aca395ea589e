"""OpenAI's template strings: `{{ item.x }}` and `{{ sample.output_json.a[0].b }}` in a text, filled in.

Knows neither conditions nor loops: a place holds one path, and nothing is computed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from loreloop.learn.rewards.graders.grader import MISSING, Given, GraderTrouble

STEP = re.compile(r"(?:^|(?<!^)\.)([A-Za-z_][A-Za-z0-9_-]*)|\[(\d{1,9})\]|\[(?:'([^'\]]*)'|\"([^\"\]]*)\")\]")
SAMPLE_FIELDS = ("output_text", "output_json", "output_tools", "choices")
MAX_FILLED = 1 << 20  # characters of a filled template
MAX_PLACES = 1000  # in one template; each is looked up while others wait

Path = tuple[str | int, ...]


def _places(text: str) -> Iterator[tuple[int, int]]:
    """Where the places of a template begin and end, braces included."""
    # Searched for and not matched: an expression would look for the end of each of a million opening braces anew.
    end = 0
    while (start := text.find("{{", end)) >= 0 and (close := text.find("}}", start + 2)) >= 0:
        end = close + 2
        yield start, end


def path_of(text: str) -> Path:
    """The names and indices of a path such as `item.a[0].b`. ValueError where it is none, or begins with neither
    `item` nor a field of `sample` that there is."""
    text, steps, at = text.strip(), list[str | int](), 0
    while at < len(text):
        match = STEP.match(text, at)
        if match is None:
            raise ValueError(f"{{{{{text[:100]}}}}} is no path like item.x or sample.output_json.a[0]")
        name, index, *quoted = match.groups()
        steps.append(int(index) if index else name or next(one for one in quoted if one is not None))
        at = match.end()
    if not steps or steps[0] not in ("item", "sample"):
        raise ValueError(f"{{{{{text[:100]}}}}} must begin with item or sample")
    if steps[0] == "sample" and (len(steps) < 2 or steps[1] not in SAMPLE_FIELDS):
        raise ValueError(f"{{{{{text[:100]}}}}} names no field of sample; there are {', '.join(SAMPLE_FIELDS)}")
    return tuple(steps)


def check_template(field: str, text: str) -> None:
    """ValueError, with the name of the field, where a template cannot be filled in whatever is given."""
    for number, (start, end) in enumerate(_places(text), 1):
        if number > MAX_PLACES:
            raise ValueError(f"`{field}`: a template may hold at most {MAX_PLACES} places in braces")
        try:
            path_of(text[start + 2 : end - 2])
        except ValueError as error:
            raise ValueError(f"`{field}`: {error}") from None


def filled(text: str, given: Given) -> str:
    """The template with values in its places: texts as they are, all else as JSON. GraderTrouble names a path that
    leads nowhere."""
    parts, at, length = list[str](), 0, len(text)
    for start, end in _places(text):
        value = _written(value_at(path_of(text[start + 2 : end - 2]), given))
        parts += [text[at:start], value]
        at, length = end, length + len(value) - (end - start)
        if length > MAX_FILLED:
            raise GraderTrouble("other", f"a template makes more than {MAX_FILLED} characters")
    return "".join([*parts, text[at:]])


def value_of(text: str, given: Given) -> Any:
    """The value itself where the template is one place and nothing else, else the filled text."""
    text = text.strip()
    if [*islice(_places(text), 2)] != [(0, len(text))]:
        return filled(text, given)
    return value_at(path_of(text[2:-2]), given)


def value_at(path: Path, given: Given) -> Any:
    """The value that a path leads to."""
    value: Any = {"item": given.item, "sample": given.sample}
    for number, step in enumerate(path):
        value = _below(value, step)
        if value is MISSING:
            if path[:2] == ("sample", "output_json") and given.sample["output_json"] is MISSING:
                raise GraderTrouble("sample_parse", "sample.output_json was asked for, and the answer is no JSON")
            raise GraderTrouble(
                "invalid_variable", f"{_shown(path)} leads nowhere: there is no {_shown(path[: number + 1])}"
            )
    return value


def _below(value: Any, step: str | int) -> Any:
    if isinstance(step, int):
        indexable = isinstance(value, Sequence) and not isinstance(value, str)
        return value[step] if indexable and step < len(value) else MISSING
    return value.get(step, MISSING) if isinstance(value, Mapping) else MISSING


def _shown(path: Path) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")


def _written(value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except RecursionError:
        raise GraderTrouble("invalid_variable", "a value for a template is nested too deeply") from None

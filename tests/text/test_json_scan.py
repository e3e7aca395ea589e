"""The end of a growing JSON object, against what json.loads makes of it."""

import json
import time

import jiter
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loreloop.text.tools.json_scan import DEEPEST, JsonScan, whole_part

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.text(max_size=6), VALUES, max_size=4)


def end_of(parts: list[str]) -> tuple[int, bool, bool]:
    scan, end = JsonScan(), 0
    for part in parts:
        end += scan.scan(part, 0)
    return end, scan.done, scan.broken


@given(value=OBJECTS, ascii_only=st.booleans(), indent=st.none() | st.integers(0, 2), rest=st.text(max_size=5))
def test_an_object_ends_with_its_last_brace(value: dict, ascii_only: bool, indent: int | None, rest: str) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    assert end_of([text + rest]) == (len(text), True, False)
    assert end_of(list(text + rest)) == (len(text), True, False)


@given(text=st.text(st.sampled_from('{}[]"\\a1, :\n<'), max_size=30))
def test_cutting_makes_no_difference(text: str) -> None:
    assert end_of(["{" + text]) == end_of(["{", *text])


@pytest.mark.parametrize("text", ["{]", '{"a": <', '{"a\n', '{"\\\n', "{[}", "{(", "{'"])
def test_what_cannot_be_json_is_refused_at_once(text: str) -> None:
    assert end_of([text]) == (len(text) - 1, False, True)


def test_depth_is_bounded() -> None:
    allowed, too_deep = '{"a":' * (DEEPEST - 1) + "[", '{"a":' * DEEPEST + "["
    assert not end_of([allowed])[2]
    assert end_of([too_deep])[2]


@pytest.mark.timed
@pytest.mark.parametrize("part", ['"a\\n",', "[],", "[1, 2.5],", '"\\"",', '"x", '])
def test_long_objects_take_seconds(part: str) -> None:
    text = '{"a":[' + part * (2_000_000 // len(part)) + "0]}"
    begin = time.perf_counter()
    assert end_of([text]) == (len(text), True, False)
    assert time.perf_counter() - begin < 10


def test_a_thousand_things_in_a_row_are_no_border() -> None:
    for n in range(995, 1010):
        for text in ('{"' + "\\n" * n + '"}', "{" + '"a"' * n + "}", "{" + '"a",' * n + "}"):
            assert end_of([text]) == (len(text), True, False)


@given(value=OBJECTS, data=st.data())
def test_what_is_whole_of_a_cut_object_is_kept_as_clients_keep_it(value: dict, data: st.DataObject) -> None:
    text = json.dumps(value, ensure_ascii=False)
    cut = text[: data.draw(st.integers(1, len(text)))]
    assert whole_part(cut) == jiter.from_json(cut.encode(), partial_mode=True)


def test_nothing_is_whole_of_nothing() -> None:
    assert whole_part("") == {}

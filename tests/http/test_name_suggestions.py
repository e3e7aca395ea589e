"""Which names an unknown one may have meant: near ones, and none where none is near."""

import pytest

from loreloop.deployments.name_suggestions import distance, refusal

KNOWN = ["router", "smollm2-135m", "support", "Qwen/Qwen3-8B-Base"]


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("nope", None),
        ("gpt-4o", None),
        ("x", None),
        ("llama", None),
        ("", None),
        ("rotuer", "router"),
        ("Router", "router"),
        ("smollm", "smollm2-135m"),
        ("smollm2-135M", "smollm2-135m"),
        ("smollm2-136m", "smollm2-135m"),
        ("my-support", "support"),
        ("Qwen3-8B", "Qwen/Qwen3-8B-Base"),
    ],
)
def test_a_name_is_guessed_only_where_one_is_near(asked: str, meant: str | None) -> None:
    said = refusal("Unknown.", asked, KNOWN).message
    assert said == ("Unknown." if meant is None else f"Unknown. Did you mean {meant!r}?")


def test_the_distance_is_levenshtein_s() -> None:
    assert [distance(*pair.split("/")) for pair in ("kitten/sitting", "/abc", "abc/", "same/same", "ab/ba")] == [
        3,
        3,
        3,
        0,
        2,
    ]

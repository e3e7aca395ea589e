"""`tinker://` paths and ids, beside the SDK's own parser."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tinker.types.checkpoint import ParsedCheckpointTinkerPath

from loreloop.protocol.errors import BadRequest
from loreloop.protocol.paths import CheckpointKind, CheckpointPath, check_name, model_id, parse_path

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)


@given(name=NAMES, kind=st.sampled_from(CheckpointKind))
def test_a_path_is_read_as_it_was_written_also_by_the_sdk(name: str, kind: CheckpointKind) -> None:
    path = CheckpointPath(model_id("session", 3), kind, name)
    assert parse_path(str(path)) == path
    theirs = ParsedCheckpointTinkerPath.from_tinker_path(str(path))
    assert (theirs.training_run_id, theirs.checkpoint_id) == (path.run_id, path.checkpoint_id)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no checkpoint path"),
        ("run/weights/a", "no checkpoint path"),
        ("tinker://run/weights", "no checkpoint path"),
        ("tinker://run/weights/a/b", "no checkpoint path"),
        ("tinker:///weights/a", "no checkpoint path"),
        ("tinker://run/adapters/a", "names the kind 'adapters'"),
        ("tinker://run/weights/..", "name '..' cannot be used"),
        ("tinker://run/weights/", "cannot be used"),
    ],
)
def test_other_texts_are_refused_with_the_part_that_is_wrong(text: str, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        parse_path(text)


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "-x", "a/b", "a\\b", "a b", "a\n", "é", "x" * 129])
def test_names_are_one_safe_component(name: str) -> None:
    with pytest.raises(BadRequest, match="cannot be used"):
        check_name(name)


@given(text=st.text(max_size=40))
def test_any_text_is_a_path_or_refused(text: str) -> None:
    with contextlib.suppress(BadRequest):
        assert str(parse_path(text)) == text

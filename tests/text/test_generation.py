"""Sampling defaults of a folder: taken as transformers takes them, and refused by name where they mean nothing."""

import json
from pathlib import Path
from typing import Any

import pytest

from loreloop.protocol.errors import BadRequest
from loreloop.text.templates.generation_defaults import read_defaults


def defaults(folder: Path, **settings: Any) -> dict[str, float]:
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return dict(read_defaults(folder))


@pytest.mark.parametrize("do_sample", [True, 1, 1.0])
def test_whole_numbers_may_be_written_as_floats(tmp_path: Path, do_sample: float) -> None:
    found = defaults(tmp_path, do_sample=do_sample, top_k=50.0, temperature=1, repetition_penalty=1)
    assert found == {"temperature": 1.0, "top_k": 50, "repetition_penalty": 1.0}
    assert isinstance(found["top_k"], int)


@pytest.mark.parametrize("wrong", [{"top_k": 50.5}, {"top_k": "50"}, {"temperature": -1}, {"do_sample": "yes"}])
def test_what_means_nothing_is_refused_with_its_name(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match=rf"generation_config\.json cannot be used: .*\$\.{next(iter(wrong))}"):
        defaults(tmp_path, **{"do_sample": True} | wrong)


def test_what_is_not_taken_is_not_looked_at(tmp_path: Path) -> None:
    assert defaults(tmp_path, do_sample=False, top_k=50.5, repetition_penalty=1.5) == {"repetition_penalty": 1.5}

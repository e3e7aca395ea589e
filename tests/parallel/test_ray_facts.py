"""Hosts whose processes could not compute alike are refused, with what each has."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from loreloop.cli.ray_facts import Facts, Question, check_alike, facts_of
from loreloop.protocol.errors import BadRequest
from tests.tiny import make_tiny_model

TRAITS = {"torch": "2.13.0", "device": "cpu", "precision": "fp32"}
FACTS = Facts(host="a", address="10.0.0.1", traits=TRAITS, fingerprint="abc", sees_data=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"traits": TRAITS | {"device": "cuda"}}, "has device cuda, and this host cpu"),
        ({"traits": TRAITS | {"precision": "bf16"}}, "has precision bf16, and this host fp32"),
        ({"traits": {"torch": "2.12.0"}}, r"a \(10.0.0.1\) has torch 2.12.0, and this host 2.13.0"),
        ({"fingerprint": "abd"}, "their fingerprints are abd and abc"),
        ({"sees_data": False}, "a .10.0.0.1. does not see the data folder /data"),
    ],
)
def test_hosts_that_differ_are_refused_with_both_values(change, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        check_alike(FACTS, [FACTS, replace(FACTS, **change)], "/models/tiny", Path("/data/run"))


def test_a_host_says_what_its_settings_come_to(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "a", "qwen3")
    for precision in ("bf16", "fp32"):
        traits = facts_of(Question(str(folder), str(tmp_path), "cpu", precision), "10.0.0.1").traits
        assert (traits["device"], traits["precision"]) == ("cpu", precision)
    traits = facts_of(Question(str(folder), str(tmp_path), "auto", "auto"), "10.0.0.1").traits
    assert traits["device"] == ("cuda" if torch.cuda.is_available() else "cpu")
    assert traits["precision"] in ("bf16", "fp32")

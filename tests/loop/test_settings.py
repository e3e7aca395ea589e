"""loop.toml: every wrong field is refused by its name, before anything runs."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from loreloop.learn.loop.config import LoopConfig, Table, config_of, load
from loreloop.protocol.errors import WrongSettings

GRADER = {"type": "exact", "name": "right", "input": "{{ sample.output_text }}", "reference": "1"}
GRPO, KIND = {"methods": ["grpo"]}, {"kind": "linear"}
SUITE = {"name": "sums", "file": "sums.jsonl", "grader": GRADER}


@pytest.mark.parametrize(
    ("plain", "named"),
    [
        ({}, "deployment"),
        ({"deployment": "a b"}, "deployment"),
        ({"deployment": "a", "url": "ftp://x"}, "url"),
        ({"deployment": "a", "key_variable": "not one"}, "key_variable"),
        ({"deployment": "a", "start": "tinker://x/sampler_weights/y"}, "start"),
        ({"deployment": "a", "colour": 1}, "colour"),
        ({"deployment": "a", "triggers": {"nightly": "25:00"}}, "triggers.nightly"),
        ({"deployment": "a", "triggers": {"feedback": -1}}, "triggers.feedback"),
        ({"deployment": "a", "training": {"methods": ["magic"]}}, "training.methods"),
        ({"deployment": "a", "training": {"methods": []}}, "training.methods"),
        ({"deployment": "a", "training": {"methods": ["grpo"]}}, "reward.kind"),
        ({"deployment": "a", "training": {"rank": 0}}, "training.rank"),
        ({"deployment": "a", "canary": {"percent": 60, "then_percent": 50}}, "canary.then_percent"),
        ({"deployment": "a", "canary": {"most_episodes": 10}}, "canary.most_episodes"),
        ({"deployment": "a", "canary": {"metrics": []}}, "canary.metrics"),
        ({"deployment": "a", "canary": {"false_promotion": 0.9}}, "canary.false_promotion"),
        ({"deployment": "a", "gate": {"suites": [SUITE, SUITE]}}, "gate.suites"),
        ({"deployment": "a", "gate": {"suites": [{**SUITE, "grader": {"type": "magic"}}]}}, "gate.suites[0].grader"),
        ({"deployment": "a", "gate": {"length_least": 5.0}}, "gate.length_least"),
        ({"deployment": "a", "gate": {"suites": [{**SUITE, "colour": 1}]}}, "gate.suites[0].colour"),
        ({"deployment": "a", "reward": {"kind": "quadratic"}}, "reward.kind"),
        ({"deployment": "a", "persons": {"corrections": -1}}, "persons.corrections"),
        ({"deployment": "a", "persons": {"users": ["ann"]}}, "persons.users"),
        ({"deployment": "a", "training": GRPO, "reward": {"grader": GRADER, "mix": "mix.toml"}}, "reward.grader"),
        ({"deployment": "a", "training": GRPO | {"kl": 0.0, "kl_budget": 0.2}, "reward": KIND}, "training.kl_budget"),
        ({"deployment": "a", "training": {"kl_budget": 0.2}}, "training.kl_budget"),
        ({"deployment": "a", "training": {"temperature": 0.5}}, "training.temperature"),
        ({"deployment": "a", "training": GRPO | {"liked": 2.0}, "reward": KIND}, "training.liked"),
        ({"deployment": "a", "reward": {"grader": GRADER}}, "reward.grader"),
        ({"deployment": "a", "reward": {"mix": "mix.toml"}}, "reward.mix"),
        ({"deployment": "a", "reward": {"metrics": {"thumb": 1.0}}}, "reward.metrics"),
    ],
)
def test_a_wrong_field_is_named(plain: dict, named: str) -> None:
    with pytest.raises(WrongSettings, match=re.escape(named)):
        config_of(plain)


def test_a_field_that_says_something_is_taken() -> None:
    assert config_of({"deployment": "a", "training": GRPO | {"kl": 0.0}, "reward": KIND}).training.kl == 0
    assert config_of({"deployment": "a", "persons": {"corrections": 3, "users": ["ann"]}}).persons.users == ("ann",)
    no_sft = {"methods": ["kto"], "general": 4}
    assert config_of({"deployment": "a", "training": no_sft, "persons": {"corrections": 3}}).training.general == 4


def test_a_file_that_is_named_must_be_there(tmp_path: Path) -> None:
    file = tmp_path / "loop.toml"
    file.write_text('deployment = "a"\n[reward]\ngolden = "golden.jsonl"\n')
    with pytest.raises(WrongSettings, match=r"reward\.golden"):
        load(file)
    (tmp_path / "golden.jsonl").write_text("{}")
    assert load(file).folder == tmp_path / "loop.state"


@pytest.mark.parametrize("text", [None, "deployment ="])
def test_a_file_that_is_none_is_refused(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "loop.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(WrongSettings, match=re.escape(str(file))):
        load(file)


def tables(kind: type[Table], prefix: str = "") -> list[tuple[str, msgspec.structs.FieldInfo]]:
    found = []
    for field in msgspec.structs.fields(kind):
        if isinstance(field.type, type) and issubclass(field.type, Table):
            found += tables(field.type, f"{field.name}.")
        else:
            found.append((prefix + field.name, field))
    return found


def test_every_field_has_a_line_with_its_default() -> None:
    page = (Path(__file__).parents[2] / "docs/loop.md").read_text()
    for name, field in tables(LoopConfig):
        row = next((line for line in page.splitlines() if line.startswith(f"| `{name}`")), "")
        assert row, f"{name} is not in docs/loop.md"
        if isinstance(field.default, int | float) and not isinstance(field.default, bool):
            assert f"{field.default:g}" in row, row

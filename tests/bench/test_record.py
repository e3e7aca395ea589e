"""What a measurement writes down."""

import json
from dataclasses import dataclass
from pathlib import Path

from bench.record import write_record
from bench.rig import Figure


@dataclass(frozen=True)
class Course:
    first: float


def test_facts_may_be_dataclasses(tmp_path: Path) -> None:
    write_record(tmp_path, "row", "About it.", [Figure("a", 1.0, "s")], ran={"side": [Course(0.5)]})
    assert json.loads((tmp_path / "row.json").read_text())["ran"] == {"side": [{"first": 0.5}]}

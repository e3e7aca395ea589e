"""The demo of the loop from beginning to end, small and with a tiny model, which learns nothing worth the name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from loreloop.cli.loop_demo import LoopDemo, Sizes
from loreloop.cli.server import RunningServer


@pytest.mark.slow
def test_the_demo_comes_to_its_end(server: RunningServer, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("LORELOOP_API_KEY", server.key)
    out = tmp_path / "out"
    out.mkdir()
    sizes = Sizes(cycles=1, answers=24, exam=5)
    LoopDemo(server=server, out=out, scratch=tmp_path, plan=sizes, model="tiny").run(8)
    page = (out / "loop.html").read_text()
    assert "<svg" in page
    assert not re.search(r"(src|href)=.https?:", page), "the page loads nothing"
    numbers = json.loads((out / "numbers.json").read_text())
    assert numbers["planted"] != "promoted"
    assert len(numbers["satisfaction"]) == 2
    said = capsys.readouterr().out
    assert "Cycle 1" in said
    assert "Zoe" in said

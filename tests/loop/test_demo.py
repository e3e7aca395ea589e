"""The demo of the loop from beginning to end, small and with a tiny model, which learns nothing worth the name; and
that it says so where it has not shown what it is to show."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from loreloop.cli.loop_beside import LoopBeside
from loreloop.cli.loop_demo import LoopDemo, Sizes
from loreloop.cli.server import RunningServer
from loreloop.demo.loop_goals import Found, Goals
from loreloop.learn.loop.state import LoopFolder
from loreloop.protocol.errors import ServerError

FINE = Found(
    satisfaction=(0.1, 0.3, 0.4),
    weights=("smollm2-135m", "tinker://a/sampler_weights/s", "tinker://b/sampler_weights/s"),
    cycles=("promoted", "promoted"),
    planted="rolled_back",
    person_weights="tinker://zoe/sampler_weights/s",
    person_right=1.0,
    others_right=0.0,
    minutes=10.0,
)


@pytest.mark.slow
def test_the_demo_comes_to_its_end(server: RunningServer, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    out.mkdir()
    demo = LoopDemo(
        server=server,
        out=out,
        scratch=tmp_path,
        plan=Sizes(cycles=2, answers=24, exam=5, most_episodes=80),
        model="tiny",
    )
    # Nobody teaches this model sums; what it must do here is to come to its end, and to tell that it has not learned.
    with pytest.raises(ServerError, match=r"not shown.*satisfaction rose by .*, where 2\.00 are the least"):
        demo.run(8, Goals(rise=2.0))
    page = (out / "loop.html").read_text()
    assert "<svg" in page
    assert not re.search(r"(src|href)=.https?:", page), "the page loads nothing"
    numbers = json.loads((out / "numbers.json").read_text())
    assert numbers["planted"] == "rolled_back"
    assert len(numbers["satisfaction"]) == len(numbers["weights"]) == 3
    # What sat the exams were the champion's own weights, and not the deployment with whatever answers there.
    assert numbers["weights"][0] == "tiny"
    champion = LoopFolder(tmp_path / "loop.state").load().champion.target
    assert numbers["weights"][2] == champion
    people = [one for one in LoopFolder(tmp_path / "loop.state").decisions() if one.stage == "person"]
    assert len(people) == 1, "Zoe had her turn, whatever else was due"
    said = capsys.readouterr().out
    assert "Cycle 2" in said
    assert "for Zoe" in said


def test_what_the_demo_is_to_show_is_held_against_what_it_has_found() -> None:
    assert not Goals().missed(FINE)
    wrong = {
        "rose by 0.20, where 0.25": replace(FINE, satisfaction=(0.1, 0.5, 0.3)),
        "planted candidate was promoted, not rolled back": replace(FINE, planted="promoted"),
        "33% of Zoe's corrections came back to her": replace(FINE, person_right=1 / 3),
        "no weights of her own": replace(FINE, person_weights=None),
        "33% of Zoe's corrections came back to somebody else": replace(FINE, others_right=1 / 3),
    }
    for sentence, found in wrong.items():
        (missed,) = Goals().missed(found)
        assert sentence in missed


def test_a_demo_whose_loop_ends_or_stands_still_ends_too(tmp_path: Path) -> None:
    file = tmp_path / "loop.toml"
    file.write_text("deployment = 5\n")
    beside = LoopBeside(file=file, log=tmp_path / "loop.log", key="tml-none")
    with pytest.raises(ServerError, match="has ended before its time"), beside.running():
        pass
    assert "`deployment`" in (tmp_path / "loop.log").read_text()
    beside.process = None
    with pytest.raises(ServerError, match="did not come on within 0 s"):
        beside.until(lambda: False, 0)

"""The programs of the pages on learning from rewards and on environments run as they stand there."""

import re
from pathlib import Path

import pytest

from loreloop.cli.server import RunningServer
from tests.learn.runs import Kept

DOCS = Path(__file__).parents[2] / "docs"

# The SDK leaves its own background tasks to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore")


def programs(page: str, behind: str = "") -> list[str]:
    text = (DOCS / page).read_text()
    return re.findall(r"^```python\n(.*?)^```$", text[text.index(behind) :], re.M | re.S)


def test_the_program_on_rewards_learns(server: RunningServer, tiny_folder: Path, capsys: pytest.CaptureFixture) -> None:
    (program,) = programs("learners.md", "## Learning from rewards")
    kept = Kept()
    names = {"url": server.url, "key": server.key, "model": "tiny", "folder": tiny_folder, "progress": kept}
    exec(program, names)
    assert kept.position is not None
    assert kept.position.finished
    assert len([float(line) for line in capsys.readouterr().out.split()]) == 4


def test_the_programs_on_environments_run() -> None:
    names: dict[str, object] = {"__name__": "page"}
    pieces = programs("environments.md")
    assert len(pieces) == 5
    for piece in pieces:
        exec(piece, names)

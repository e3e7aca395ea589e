"""What docs/learners.md gives to paste on learning from files does what it says, against a live server."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from loreloop.cli.main import cli
from loreloop.cli.server import RunningServer
from loreloop.learn import settings
from loreloop.learn.files import READERS

# The SDK leaves its own background tasks to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore")

WHOLE = (Path(__file__).parents[2] / "docs" / "learners.md").read_text()
PAGE = WHOLE.split("\n## Learning from rewards\n")[0]  # the rest has a test of its own
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.S) for line in block.splitlines()]
LINES = dict(zip(("sft", "dpo", "kto"), re.findall(r"```json\n(.*?)```", PAGE, re.S)[0].splitlines(), strict=True))
PROGRAM, *_ = re.findall(r"```python\n(.*?)```", PAGE, re.S)


def test_the_lines_of_files_are_read() -> None:
    for method, line in LINES.items():
        assert len(list(READERS[method]([line]))) == 1


def test_every_learner_and_every_setting_has_its_place() -> None:
    for method, kind in settings.SETTINGS.items():
        # Those that learn from rewards stand below a heading of their own.
        assert re.search(rf"^##+ {method}", WHOLE, re.M | re.I), method
        for field in msgspec.structs.fields(kind):
            assert f"--{field.name.replace('_', '-')}" in WHOLE, field.name


def test_the_commands_and_the_program_run(
    server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in (("TINKER_BASE_URL", server.url), ("TINKER_API_KEY", server.key), ("TINKER_TELEMETRY", "0")):
        monkeypatch.setenv(name, value)
    for name, method in (("chats", "sft"), ("held-out", "sft"), ("pairs", "dpo"), ("marks", "kto")):
        Path(f"{name}.jsonl").write_text(f"{LINES[method]}\n" * 4)
    trained = [line for line in COMMANDS if line.startswith("loreloop train")]
    assert len(trained) == 3
    for line in trained:
        words = [*shlex.split(line.replace("smollm2-135m", "tiny"))[1:], "--steps", "2", "--rank", "4"]
        ran = CliRunner().invoke(cli, words, catch_exceptions=False)
        assert ran.exit_code == 0, ran.output
        assert ran.stdout.startswith("tinker://")
    assert Path("chats.png").exists()
    kept = re.findall(r"^\| `([\w.]+)/?` \| ", PAGE.split("\n## A run")[1].split("\n- ")[0], re.M)
    assert {file.name for file in Path("runs/chats").iterdir()} == set(kept)
    assert json.loads(Path("runs/pairs/run.json").read_text())["settings"]["beta"] == 0.1
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM.replace("smollm2-135m", "tiny")]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("finished tinker://")

"""`loreloop train` against a real server: a run, its resumption, its picture, and what it refuses."""

import errno
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from loreloop.cli.main import cli
from loreloop.cli.server import RunningServer
from loreloop.cli.train_record import Folder
from loreloop.protocol.errors import BadRequest, LoreloopError

# The SDK leaves its own background tasks to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore")


def chats(n: int) -> list[dict[str, Any]]:
    return [
        {"messages": [{"role": "user", "content": f"what is {k}?"}, {"role": "assistant", "content": f"it is {k}"}]}
        for k in range(n)
    ]


LINES = {
    "sft": chats(6),
    "dpo": [{"prompt": f"what is {k}?", "chosen": f"it is {k}", "rejected": "the lazy dog"} for k in range(6)],
    "kto": [{"prompt": f"{k}?", "completion": ("it is", "dog")[k % 2], "label": k % 2 == 0} for k in range(6)],
}


def written(file: Path, lines: list[dict[str, Any]]) -> str:
    file.write_text("\n".join(map(json.dumps, lines)))
    return str(file)


@pytest.fixture
def asked(server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What runs a command on the tiny model with its run in a folder of the test."""
    monkeypatch.setenv("TINKER_BASE_URL", server.url)
    monkeypatch.setenv("TINKER_API_KEY", server.key)
    monkeypatch.setenv("TINKER_TELEMETRY", "0")

    def ask(method: str, *arguments: str) -> Result:
        usual = ["--model", "tiny", "--out", str(tmp_path / "run"), "--rank", "4"]
        return CliRunner().invoke(cli, ["train", method, *usual, *arguments], catch_exceptions=False)

    return ask


@pytest.mark.parametrize("method", ["sft", "dpo", "kto"])
def test_a_run_keeps_its_record_its_measures_and_a_picture(asked, tmp_path: Path, method: str) -> None:
    data, plot = written(tmp_path / "data.jsonl", LINES[method]), tmp_path / "run.png"
    sized = ["--epochs", "2", "--batch-size", "3", "--lr", "0.01", "--suffix", "mine"]
    ran = asked(method, "--data", data, "--eval", data, "--plot", str(plot), *sized)
    assert ran.exit_code == 0
    path = ran.stdout.strip()
    assert path.endswith(f"/sampler_weights/{method}-mine-step-000004")
    assert plot.read_bytes().startswith(b"\x89PNG")
    measured = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in measured] == [1, 2, 3, 4]
    assert measured[3]["metrics"].keys() >= {"train_loss", "valid_loss"}
    assert "step 4:" in ran.stderr
    assert asked(method, "--data", data, "--eval", data, *sized).stdout.strip() == path


def test_a_folder_has_one_run_at_a_time(asked, tmp_path: Path) -> None:
    data = written(tmp_path / "data.jsonl", LINES["sft"])
    other = Folder(tmp_path / "run")
    other.hold()
    with pytest.raises(BadRequest, match="Another process is training into"):
        asked("sft", "--data", data, "--steps", "1")
    other.release()
    assert asked("sft", "--data", data, "--steps", "1").exit_code == 0


def test_a_folder_on_a_file_system_without_locks_is_trained_into(tmp_path: Path, monkeypatch) -> None:
    def refuse(handle: int, how: int) -> None:
        # NFS locks only what is open for writing, and some file systems nothing at all.
        assert os.get_inheritable(handle) is False
        assert fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    folder = Folder(tmp_path / "run")
    folder.hold()
    assert folder.held is None
    assert not folder.has_begun()


def test_the_command_of_a_record_repeats_the_run(asked, tmp_path: Path) -> None:
    data = written(tmp_path / "data.jsonl", LINES["sft"])
    asked("sft", "--data", data, "--steps", "3", "--no-train-unembed")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    words = shlex.split(record["command"])
    # Numbers that a rule has chosen stand in it, and no key.
    assert {"--lr", "--epochs", "--batch-size"} < set(words)
    assert "--key" not in words
    words[words.index("--out") + 1] = str(tmp_path / "again")
    again = CliRunner().invoke(cli, words[1:], catch_exceptions=False)
    assert again.exit_code == 0
    theirs = json.loads((tmp_path / "again" / "run.json").read_text())
    assert {**record, "command": ""} == {**theirs, "command": ""}
    losses = [
        [
            json.loads(line)["metrics"]["train_loss"]
            for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()
        ]
        for run in ("run", "again")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_same_folder_goes_on_and_another_run_is_refused(asked, tmp_path: Path) -> None:
    data, run = written(tmp_path / "data.jsonl", LINES["sft"]), tmp_path / "run"
    sized = ["--data", data, "--epochs", "2", "--batch-size", "2", "--save-every", "2"]
    path = asked("sft", *sized).stdout.strip()
    position = json.loads((run / "position.json").read_text())
    # As a process leaves it that is killed between its fourth and its fifth step, with a line half written.
    (run / "position.json").write_text(json.dumps({**position, "finished": False, "step": 4}))
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:5]) + lines[5][:20])
    rest = asked("sft", *sized)
    assert rest.stdout.strip() != path
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4, 5, 6]
    with pytest.raises(BadRequest, match="has batch_size = 2 in place of 3"):
        asked("sft", "--data", data, "--epochs", "2", "--batch-size", "3", "--save-every", "2")
    written(tmp_path / "data.jsonl", chats(7))
    with pytest.raises(BadRequest, match="whose data_sha256 is"):
        asked("sft", *sized)


def test_a_run_that_was_refused_is_not_in_the_way_of_one_that_is_asked_rightly(asked, tmp_path: Path) -> None:
    data, run = written(tmp_path / "data.jsonl", LINES["sft"]), tmp_path / "run"
    with pytest.raises(BadRequest):
        asked("sft", "--data", data, "--key", "tml-wrong")
    # As if the command had been refused for another model, whose tokenizer is not this one's.
    (run / "texts" / "tokenizer.json").write_text("{}")
    assert asked("sft", "--data", data, "--epochs", "1", "--batch-size", "6").exit_code == 0
    assert json.loads((run / "run.json").read_text())["plan"]["batch_size"] == 6


def test_a_file_has_the_options_names(asked, tmp_path: Path) -> None:
    data, config = written(tmp_path / "data.jsonl", LINES["dpo"]), tmp_path / "run.toml"
    config.write_text(f'data = "{data}"\nbatch-size = 4\nlr = 0.001\nbeta = 0.2\ntrain_unembed = false\nepochs = 1\n')
    asked("dpo", "--config", str(config), "--beta", "0.3")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["plan"]["batch_size"], record["plan"]["learning_rate"]) == (4, 0.001)
    assert record["plan"]["train_unembed"] is False
    assert record["settings"]["beta"] == 0.3
    config.write_text("betta = 1\n")
    refused = asked("dpo", "--config", str(config))
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "'betta', which is no option of this command" in refused.stderr
    config.write_text("beta = 99\n")
    assert "is not in the range" in asked("dpo", "--config", str(config), "--data", data).stderr


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--model", "other"], "gives out no tokenizer of 'other'"),
        (["--suffix", "a b"], "These options make no plan of a run"),
        (["--url", "http://127.0.0.1:9"], "does not answer"),
        (["--start", "tinker://nobody/weights/none"], "did not do what the run asked"),
        (["--key", "tml-wrong"], r"asked of it: This key is not one of this server[^{]*$"),
    ],
    ids=lambda value: str(value[0]).strip("-"),
)
def test_what_cannot_be_run_is_told(asked, tmp_path: Path, change: list[str], words: str) -> None:
    data = written(tmp_path / "data.jsonl", LINES["sft"])
    with pytest.raises(LoreloopError, match=words):
        asked("sft", "--data", data, *change)


def test_a_picture_that_cannot_be_drawn_is_refused_before_the_run(asked, tmp_path: Path) -> None:
    refused = asked("sft", "--data", written(tmp_path / "data.jsonl", LINES["sft"]), "--plot", "run.xyz")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "run.xyz must end in .png, .svg, .pdf." in refused.stderr


def test_an_example_that_is_too_long_is_named(asked, tmp_path: Path) -> None:
    long = {"messages": [{"role": "user", "content": "fox " * 600}, {"role": "assistant", "content": "dog"}]}
    data = written(tmp_path / "data.jsonl", [*chats(2), long])
    with pytest.raises(BadRequest, match=r"Example 3 has \d+ tokens, and tiny takes 512; shorten it"):
        asked("sft", "--data", data)


def running(tmp_path: Path, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-W", "ignore", "-m", "loreloop.cli", "train", "sft", "--model", "tiny", "--rank", "4"]
    return subprocess.Popen(
        [*command, "--out", str(tmp_path / "run"), *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def steps_in(file: Path) -> list[int]:
    return [json.loads(line)["step"] for line in file.read_text().splitlines()] if file.exists() else []


def wait_for(tmp_path: Path, n_steps: int) -> None:
    deadline = time.monotonic() + 60
    while len(steps_in(tmp_path / "run" / "metrics.jsonl")) < n_steps:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=lambda one: one.name)
def test_a_run_that_was_ended_goes_on(asked, tmp_path: Path, number: signal.Signals) -> None:
    data = written(tmp_path / "data.jsonl", chats(40))
    sized = ["--data", data, "--epochs", "3", "--batch-size", "1", "--save-every", "5"]
    first = running(tmp_path, *sized)
    wait_for(tmp_path, 7)
    first.send_signal(number)
    told, errors = first.communicate(timeout=60)
    assert first.returncode == (-number if number == signal.SIGKILL else 128 + number)
    assert told == b""
    for words in (b"Pausing behind this step", b"Paused; the same command goes on from here."):
        assert (words in errors) == (number != signal.SIGKILL)
    measured = steps_in(tmp_path / "run" / "metrics.jsonl")
    saved = json.loads((tmp_path / "run" / "position.json").read_text())["step"]
    if number == signal.SIGKILL:
        assert saved >= 5
        assert len(measured) - saved <= 5  # so many it repeats
    else:
        assert saved == len(measured) < 120  # asked to stop, it has saved its very step
    assert asked("sft", *sized).exit_code == 0
    assert steps_in(tmp_path / "run" / "metrics.jsonl") == list(range(1, 121))

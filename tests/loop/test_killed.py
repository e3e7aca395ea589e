"""`loreloop loop run` as a process that is killed with signal 9 at every stage, and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from loreloop.cli.server import RunningServer
from loreloop.host import children
from loreloop.learn.loop.door import Door
from loreloop.learn.loop.state import LoopFolder, State
from loreloop.protocol.episodes import Person
from tests.loop.feeds import Feeds
from tests.loop.proxy import before
from tests.loop.test_whole_cycle import deploy

SETTINGS = """\
deployment = "assistant"
url = "{url}"

[triggers]
feedback = 4
poll_seconds = 0.05

[training]
methods = ["sft", "kto"]
rank = 4
learning_rate = 0.01
epochs = 6
general = 0
batch_size = 2
least_examples = 2

[gate]
kl_most = 100.0
length_most = 100.0
length_least = 0.0
repetition_most = 1.0
prompts = 4

[canary]
percent = 50.0
least_episodes = 5
most_episodes = 40
gain = 0.3
"""
WAIT_SECONDS = 300.0


@contextmanager
def running(file: Path, key: str) -> Iterator[subprocess.Popen[bytes]]:
    environment = children.environment() | {"LORELOOP_API_KEY": key, "TINKER_TELEMETRY": "0"}
    command = children.python("loreloop.cli", "loop", "run", str(file))
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def until(folder: LoopFolder, fine: Callable[[State | None], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not fine(folder.load()):
        assert time.monotonic() < deadline, (folder.load(), folder.why())
        assert process.poll() is None, process.communicate()[1].decode()
        time.sleep(0.002)


def learning(number: int) -> Callable[[LoopFolder], bool]:
    """Whether the n-th method of the first cycle has saved a position: in the middle of its run, or behind it."""
    name = ("sft", "kto")[number]
    return lambda folder: (folder.cycle(1) / name / "position.json").exists()


@pytest.mark.slow
def test_a_loop_that_is_killed_at_every_stage_ends_as_one_that_was_not(server: RunningServer, tmp_path: Path) -> None:
    deploy(server)
    feeds, folder = Feeds(), LoopFolder(tmp_path / "loop.state")
    for n in range(6):
        turn = feeds.turn(f"what is {n}?", "it is the fox", prompt=(1, 5, 6), tokens=(7, 8), logprobs=(-1.0, -1.0))
        feeds.say(turn.id, "demonstration", f"it is {n}")
        feeds.say(turn.id, "thumb", value=False)
    with before(server.url, feeds) as url:
        file = tmp_path / "loop.toml"
        file.write_text(SETTINGS.format(url=url))
        door = Door.to(server.url, server.key, "assistant")
        deaths: list[Callable[[State | None], bool]] = [
            lambda state: state is not None,
            lambda state: state is not None and state.cycle == 1,  # it collects, and that is soon done
            lambda state: state is not None and state.stage == "training",
            lambda _: learning(0)(folder),
            lambda _: learning(1)(folder),
            lambda state: state is not None and state.stage == "gate",
            lambda state: state is not None and state.stage == "canary",
        ]
        for death in deaths:
            with running(file, server.key) as process:
                until(folder, death, process)
                # What stands there is whole, whatever moment this is.
                assert folder.load() is not None
                os.kill(process.pid, signal.SIGKILL)
        version = door.deployment().version
        for n in range(40):
            arm = ("main", "canary")[n % 2]
            turn = feeds.turn(f"how is {n}?", "well", arm=arm, version=version, person=Person("key", f"user {n}"))
            feeds.say(turn.id, "thumb", value=arm == "canary", who=f"{n}")
        with running(file, server.key) as process:
            until(folder, lambda _: folder.decided("1:canary") is not None, process)
            os.kill(process.pid, signal.SIGKILL)
        with running(file, server.key) as process:
            until(folder, lambda state: state is not None and state.champion.cycle == 1, process)
        target = door.deployment().target
        door.http.close()
    state = folder.load()
    assert state is not None
    assert target == state.champion.target == feeds.used[-1]["revision"]
    keys = [one.key for one in folder.decisions() if one.cycle == 1]
    assert keys == ["1:gate", "1:canary"]
    assert {tuple(one["turns"]) for one in feeds.used if one["candidate"].endswith("0001")} == {
        tuple(f"chatcmpl-{n}" for n in range(1, 7))
    }


def after(folder: LoopFolder, pattern: str) -> Callable[[State | None], bool]:
    """Whether a person's adapter has come so far that there is such a file."""
    return lambda _: any(folder.path.glob(pattern))


@pytest.mark.slow
def test_a_loop_that_is_killed_amid_a_persons_adapter_makes_it_once(server: RunningServer, tmp_path: Path) -> None:
    deploy(server)
    feeds, folder = Feeds(), LoopFolder(tmp_path / "loop.state")
    for n in range(4):
        turn = feeds.turn(f"what is {n}?", "it is the fox", person=Person("key", "zoe"))
        feeds.say(turn.id, "demonstration", f"it is {n}")
    with before(server.url, feeds) as url:
        file = tmp_path / "loop.toml"
        # A shared cycle is due as well, and waits for its turn.
        persons = "\n[persons]\ncorrections = 4\nepochs = 12\nright_least = 0.0\n"
        file.write_text(SETTINGS.format(url=url) + persons)
        door = Door.to(server.url, server.key, "assistant")
        for death in (
            after(folder, "persons/*/*/data.json"),
            after(folder, "persons/*/*/sft/position.json"),
            after(folder, "decisions.jsonl"),
            after(folder, "persons.json"),
        ):
            with running(file, server.key) as process:
                until(folder, death, process)
                os.kill(process.pid, signal.SIGKILL)
        with running(file, server.key) as process:
            until(folder, lambda state: state is not None and state.stage == "canary", process)
        # The last death may have come between the note of what she gets and the deployment's move.
        answers = door.http.get(f"{door.place}/persons/zoe?key=key").json()["target"]
        door.http.delete(f"{door.place}/persons/zoe?key=key").raise_for_status()
        door.http.close()
    first, *rest = folder.decisions()
    assert (first.stage, first.verdict, first.candidate) == ("person", "promoted", answers)
    assert "person" not in [one.stage for one in rest], "the same words make no second adapter"
    assert not list(folder.path.glob("persons/*/*/*.jsonl"))
    of_zoe = [one for one in feeds.used if "-0001" not in one["candidate"]]
    assert {tuple(one["turns"]) for one in of_zoe} == {tuple(f"chatcmpl-{n}" for n in range(1, 5))}
    assert of_zoe[-1]["revision"] == answers

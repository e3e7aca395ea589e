"""A group of processes of which none does anything is found, and one that computes, waits or rests is not."""

import os
import queue
import signal
import subprocess
import sys
import time

import pytest

from loreloop.host.lifeline import Lifelines
from loreloop.host.silence import Afar, Watch, activity_of, group_of

SECONDS = 1.0
COMPUTES, SLEEPS = "while True: pass", "import time; time.sleep(100)"


@pytest.fixture
def started():
    running: list[subprocess.Popen] = []

    def start(text: str, *words: str) -> int:
        running.append(subprocess.Popen([sys.executable, "-c", text, *words]))
        return running[-1].pid

    yield start
    for process in running:
        process.kill()
        process.wait()


def watched(*pids: int, work: str, seconds: float) -> str:
    """What the watch says while there is something to do for so long, if anything."""
    said: queue.SimpleQueue[str] = queue.SimpleQueue()
    watch = Watch(pids, SECONDS, said.put)
    try:
        if work:
            with watch.amid(work):
                return said.get(timeout=seconds)
        return said.get(timeout=seconds)
    except queue.Empty:
        return ""


def test_a_stopped_process_for_which_another_waits_is_told(started) -> None:
    computing, waiting = started(COMPUTES), started(SLEEPS)
    time.sleep(0.5)
    os.kill(computing, signal.SIGSTOP)
    said = watched(computing, waiting, work="train", seconds=10)
    assert said.startswith("nothing has happened for 1 s amid train")
    assert f"process {computing} is in state T, process {waiting} is in state S" in said


LOOKS = """
import os, queue, sys
from loreloop.host.silence import Watch
said = queue.SimpleQueue()
with Watch([os.getpid(), int(sys.argv[1])], 1.0, said.put).amid("train"):
    print(os.getpid(), said.get(timeout=20))
"""


def test_whoever_looks_is_one_of_those_that_wait(started) -> None:
    """As in every group: the watch is a thread of each of its processes."""
    stopped = started(SLEEPS)
    os.kill(stopped, signal.SIGSTOP)
    done = subprocess.run([sys.executable, "-c", LOOKS, str(stopped)], check=True, capture_output=True, text=True)
    looks, _, said = done.stdout.partition(" ")
    assert f"process {looks} is in state S, process {stopped} is in state T" in said


def test_work_of_any_length_is_no_silence(started) -> None:
    assert watched(started(COMPUTES), started(SLEEPS), work="train", seconds=4) == ""


PAUSED = """
import os, subprocess, sys, time
from loreloop.host.silence import Watch
computing = subprocess.Popen([sys.executable, "-c", "while True: pass"])
with Watch([computing.pid], 1.0, lambda what: print(what, flush=True)).amid("train"):
    print("begun", flush=True)
    time.sleep(2.5)
computing.kill()
"""


def test_a_pause_of_the_whole_group_is_no_silence():
    """As Ctrl-Z, a debugger or a paused container make one: the watch has stood still as well."""
    watching = subprocess.Popen(
        [sys.executable, "-c", PAUSED], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert watching.stdout is not None
    assert watching.stdout.readline() == "begun\n"
    os.killpg(watching.pid, signal.SIGSTOP)
    time.sleep(2.5)
    os.killpg(watching.pid, signal.SIGCONT)
    assert watching.communicate(timeout=20)[0] == ""


def test_there_is_nothing_to_tell_where_there_is_nothing_to_do(started) -> None:
    assert watched(started(SLEEPS), work="", seconds=3) == ""


def test_pieces_of_work_that_end_are_none_that_hangs(started) -> None:
    said: queue.SimpleQueue[str] = queue.SimpleQueue()
    watch = Watch([started(SLEEPS)], SECONDS, said.put)
    for _ in range(15):
        with watch.amid("sample_step"):
            time.sleep(0.2)
    assert said.empty()


def test_a_process_has_its_children(started) -> None:
    pid = started(SLEEPS)
    assert group_of(os.getpid())[0] == os.getpid()
    assert pid in group_of(os.getpid())
    assert group_of(pid) == []
    assert activity_of(2**22 + 1).state == "Z"


TELLS = """
import sys
from loreloop.host.lifeline import Address, hold
from loreloop.host.silence import tell_often
line = hold(Address("127.0.0.1", int(sys.argv[1]), "secret"), 1, lambda why: None)
print("said", file=line)
tell_often(1.0, lambda activity: line.tell(str(activity)))
{work}
"""


@pytest.mark.parametrize("stops", [True, False])
def test_a_process_of_another_host_is_watched_by_what_it_says(stops: bool, started, capfd) -> None:
    said: queue.SimpleQueue[str] = queue.SimpleQueue()
    lines, afar = Lifelines("127.0.0.1", "secret"), Afar()
    pid = started(TELLS.format(work=COMPUTES), str(lines.address.port))
    lines.gather({1: "rank 1 on far"}, 30.0, lambda rank, why: None, afar.say)
    afar.expect({1: "rank 1 on far"})
    watch = Watch([started(SLEEPS)], SECONDS, said.put, afar)
    with watch.amid("train"):
        time.sleep(2.5)
        assert said.empty(), "it computes"
        if not stops:
            return
        os.kill(pid, signal.SIGSTOP)
        told = said.get(timeout=10)
    assert told.startswith("nothing has happened for 1 s amid train (process ")
    assert told.endswith(" is in state S, rank 1 on far says nothing)")
    assert capfd.readouterr().err == "said\n", "its other lines go to the log, and these do not"


def test_a_process_of_another_host_that_only_waits_is_silent(started) -> None:
    lines, afar = Lifelines("127.0.0.1", "secret"), Afar()
    started(TELLS.format(work=SLEEPS), str(lines.address.port))
    lines.gather({1: "rank 1 on far"}, 30.0, lambda rank, why: None, afar.say)
    afar.expect({1: "rank 1 on far"})
    said: queue.SimpleQueue[str] = queue.SimpleQueue()
    with Watch([started(SLEEPS)], SECONDS, said.put, afar).amid("train"):
        assert said.get(timeout=15).endswith("is in state S, rank 1 on far is in state S)")

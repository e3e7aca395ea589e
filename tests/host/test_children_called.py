"""Processes are looked for while some of them end."""

import os
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from tests.processes import children_called, words_of

SLEEPING = [sys.executable, "-c", "import time; time.sleep(600)", "a-sleeper"]


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(SLEEPING)
    yield process
    process.kill()
    process.wait(30)


def test_a_process_is_found_by_what_it_was_called_with(sleeper: subprocess.Popen[bytes]) -> None:
    assert [each.pid for each in children_called(os.getpid(), "a-sleeper")] == [sleeper.pid]
    assert children_called(os.getpid(), "another") == []


def test_one_that_has_ended_is_not_found_and_is_no_error(sleeper: subprocess.Popen[bytes]) -> None:
    """Neither before its parent has fetched its exit code, nor behind that."""
    process = psutil.Process(sleeper.pid)
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert children_called(os.getpid(), "a-sleeper") == []
    assert words_of(process) == []
    sleeper.wait(30)
    assert words_of(process) == []
    assert children_called(sleeper.pid, "a-sleeper") == []

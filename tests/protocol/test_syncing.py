"""Syncs by path: folders that cannot be synced at all are no damage; after a sync that is refused nothing goes on."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loreloop.protocol import syncing
from loreloop.protocol.syncing import CANNOT_SYNC, SyncFailed, promise, sync_path, sync_tree


@pytest.fixture(autouse=True)
def power() -> Iterator[None]:
    promise("power")
    yield
    promise("os")


def failing(number: int) -> Callable[[int], None]:
    def sync(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    return sync


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBADF, errno.ENOTSUP])
def test_a_file_system_that_syncs_no_folders_can_be_used_and_is_told_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    syncing._say_unsynced.cache_clear()
    monkeypatch.setattr("loreloop.protocol.syncing.os.fsync", failing(number))
    for _ in range(3):
        sync_path(tmp_path)
    assert [os.strerror(number) in line for line in caplog.messages] == [True]


@pytest.mark.parametrize(("number", "of_file"), [(errno.EIO, False), (errno.EIO, True), (errno.EINVAL, True)])
def test_a_refused_sync_ends_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int, of_file: bool
) -> None:
    (tmp_path / "file").touch()
    ended: list[bool] = []
    monkeypatch.setattr("loreloop.protocol.syncing.os.fsync", failing(number))
    monkeypatch.setattr("loreloop.protocol.syncing.end_process", lambda: ended.append(True))
    with pytest.raises(SyncFailed):
        sync_path(tmp_path / "file" if of_file else tmp_path)
    assert ended == [True]
    assert "could not be synced" in capsys.readouterr().err


def test_nothing_that_catches_all_keeps_the_process(tmp_path: Path) -> None:
    code = f"""
import os
from pathlib import Path
from loreloop.protocol.syncing import sync_path
def refused(file):
    raise OSError(5, "Input/output error")
os.fsync = refused
try:
    sync_path(Path({str(tmp_path)!r}))
except BaseException:
    pass
print("went on")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (CANNOT_SYNC, "")
    assert str(tmp_path) in done.stderr


def test_without_the_promise_nothing_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    synced: list[int] = []
    monkeypatch.setattr("loreloop.protocol.syncing.os.fsync", synced.append)
    sync_tree(tmp_path)
    assert len(synced) == 2
    promise("os")
    sync_tree(tmp_path)
    assert len(synced) == 2

"""A user's mistake at `loreloop serve` ends with a sentence that names what is wrong, and with no traceback."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from loreloop.host.address import listen
from loreloop.host.place import prepare
from loreloop.host.supervisor import lock_data
from loreloop.protocol.errors import BadRequest, WrongSettings
from loreloop.store.store import open_database


def served(*arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "loreloop.cli", "serve", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in done.stderr
    assert "fault of loreloop" not in done.stderr
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--threads", "-3"], "--threads"),
        (["--memory-mib", "-1"], "--memory-mib"),
        (["--replicas", "-1"], "--replicas"),
        (["--replicas", "5000"], "--replicas"),
        (["--decode-gap-ms", "-1"], "--decode-gap-ms"),
        (["--port", "70000"], "--port"),
        (["--host", "0.0.0.0x"], "--host"),
        (["--host", "203.0.113.7"], "--host"),
        (["--host", ""], "--host"),
        (["--data", "/dev/null/x"], "--data"),
        (["--data", "/proc/x"], "--data"),
        (["--data", "~nobody-of-this-name/x"], "--data"),
        (["--config", "bad.toml"], "bad.toml, line 1, column 8"),
        (["--log-file", "/dev/null/x"], "--log-file"),
    ],
)
def test_a_wrong_flag_is_named(
    arguments: list[str], said: str, tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad.toml").write_text("port = \n")
    monkeypatch.chdir(tmp_path)
    usual = ["--data", str(tmp_path / "data"), "--model", str(tiny_folder), "--port", "0"]
    code, errors = served(*usual, *arguments)
    assert (code, said in errors) == (2, True), errors


def test_a_taken_port_is_told_from_a_wrong_host() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(BadRequest, match="another --port") as refused:
            listen("127.0.0.1", taken.getsockname()[1])
    assert not isinstance(refused.value, WrongSettings)
    for host in ("no such host", "..", "x" * 300, "256.1.1.1", "::zz"):
        with pytest.raises(WrongSettings, match="--host"):
            listen(host, 0)


def test_hosts_may_be_names_and_addresses_of_both_kinds() -> None:
    for host in ("localhost", "127.0.0.1", "::1", "0.0.0.0"):
        listen(host, 0).close()


def test_a_data_folder_is_not_made_inside_another(tmp_path: Path) -> None:
    open_database(tmp_path / "data").dispose()
    prepare(tmp_path / "data")
    with pytest.raises(WrongSettings, match=f"lies in another data folder, {tmp_path}/data"):
        prepare(tmp_path / "data" / "models" / "mine")
    assert not (tmp_path / "data" / "models").exists()


def test_a_file_is_no_data_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WrongSettings, match="--data"):
        prepare(tmp_path / "file")


def test_a_full_disk_is_named_at_the_start(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / ".probe-data").symlink_to("/dev/full")
    with pytest.raises(BadRequest, match=r"has not even 8 MiB left: No space left on device. Make room there."):
        prepare(data)
    assert list(data.iterdir()) == []


def test_other_verbs_do_not_call_a_full_disk_or_a_wrong_path_a_fault_of_ours() -> None:
    command = [sys.executable, "-m", "loreloop.cli", "keys", "create", "a", "--data", "/dev/null/x"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "/dev/null/x cannot be used: Not a directory" in done.stderr) == (1, True), done.stderr


def test_a_folder_that_another_server_writes_is_not_judged(tmp_path: Path) -> None:
    """What is only half written would be called damaged."""
    (tmp_path / "loreloop.db").write_bytes(b"between two states")
    command = [sys.executable, "-m", "loreloop.cli", "serve", "--data", str(tmp_path), "--port", "0"]
    with lock_data(tmp_path / "run"):
        refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 1
    assert "A server is running" in refused.stderr

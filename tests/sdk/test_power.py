"""Checkpoints of a real server and a power cut: contents, folder, row, in that order; and a disk that refuses."""

import subprocess
import sys
from pathlib import Path

import pytest

from loreloop.cli.server import RunningServer, running_server
from tests.sdk.clients import fit, trainer
from tests.store.test_durability import pytestmark as needs_compiler
from tests.store.test_durability import shim as shim

pytestmark = [needs_compiler, pytest.mark.filterwarnings("ignore")]
OPTIONS = ["--model", "tiny", "--precision", "fp32", "--threads", "1"]


@pytest.fixture
def data(tmp_path: Path, tiny_folder: Path, shim: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "data" / "models").mkdir(parents=True)
    (tmp_path / "data" / "models" / "tiny").symlink_to(tiny_folder)
    monkeypatch.setenv("LD_PRELOAD", str(shim))
    monkeypatch.setenv("SYNC_LOG", str(tmp_path / "notes"))
    return tmp_path / "data"


def saved(server: RunningServer) -> str:
    client = trainer(server)
    fit(client, 1)
    return client.save_state("kept").result(60).path


def test_a_checkpoint_is_on_the_disk_before_its_row(data: Path) -> None:
    with running_server(str(data), OPTIONS) as running:
        saved(running)
    notes = [line.split(" ", 2)[1:] for line in (data.parent / "notes").read_text().splitlines()]
    renamed = next(i for i, (what, path) in enumerate(notes) if what == "rename" and path.endswith("/weights/kept"))
    folder = Path(notes[renamed][1])
    before = {Path(path).name for what, path in notes[:renamed] if what == "sync" and ".kept." in path}
    assert before >= {"adapter_config.json", "adapter_model.safetensors", "optimizer.safetensors", "checksums.json"}
    assert any(name.startswith(".kept.") for name in before)  # the names in the folder
    after = [path for what, path in notes[renamed + 1 :] if what == "sync"]
    assert str(folder.parent) in after
    row = next(i for i, path in enumerate(after) if path.endswith("loreloop.db-wal"))
    assert after.index(str(folder.parent)) < row


@pytest.mark.parametrize("which", ["optimizer.safetensors", ".seg"])
def test_a_server_whose_disk_refuses_a_sync_stops_and_says_so(
    data: Path, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_server(str(data), OPTIONS) as running:
        key = running.key
    monkeypatch.setenv("SYNC_ONLY", which)
    monkeypatch.setenv("SYNC_FAILS", "1")
    command = [sys.executable, "-m", "loreloop.cli", "serve", "--data", str(data), "--port", "0", *OPTIONS]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    url = address(data, process)
    asked = f"""
from tests.sdk.test_power import saved
from loreloop.cli.server import RunningServer
from pathlib import Path
saved(RunningServer({url!r}, {key!r}, 0, Path("/")))
"""
    client = subprocess.Popen([sys.executable, "-W", "ignore", "-c", asked], stderr=subprocess.DEVNULL, env=plain())
    try:
        _, said = process.communicate(timeout=120)
    finally:
        client.kill()
        client.wait()
    assert process.returncode == 1
    assert "its disk refused a sync" in said
    log = (data / "loreloop.log").read_text()
    assert "could not be synced to the disk" in log
    assert log.count("started (pid") == log.count(", life 1)")  # nothing was started again


def plain() -> dict[str, str]:
    """An environment without the library."""
    import os

    return {name: value for name, value in os.environ.items() if name not in ("LD_PRELOAD", "SYNC_FAILS", "SYNC_ONLY")}


def address(data: Path, process: subprocess.Popen[str]) -> str:
    import json
    import time

    file = data / "run" / "server.json"
    for _ in range(2400):
        if file.exists() and json.loads(file.read_bytes())["pid"] == process.pid:
            return json.loads(file.read_bytes())["url"]
        assert process.poll() is None
        time.sleep(0.05)
    raise AssertionError("the server did not start")

"""Checkpoints of a real server and a power cut: contents, folder, row, in that order; and a disk that refuses."""

import subprocess
import sys
from pathlib import Path

import pytest

from loreloop.cli.server import RunningServer, running_server
from tests.sdk.clients import fit, service, trainer
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


def saved(server: RunningServer) -> None:
    """A checkpoint, and another model that begins from it, so that it is pinned."""
    client = trainer(server)
    fit(client, 1)
    path = client.save_state("kept").result(60).path
    service(server).create_training_client_from_state(path).result(60)


def noted(data: Path) -> list[tuple[int, str, Path]]:
    """What the system was asked for, by which process, in order."""
    lines = [line.split(" ", 2) for line in (data.parent / "notes").read_text().splitlines()]
    return [(int(pid), what, Path(path)) for pid, what, path in lines]


def test_a_checkpoint_is_on_the_disk_before_its_row(data: Path) -> None:
    with running_server(str(data), OPTIONS, durability="power") as running:
        saved(running)
    notes = noted(data)
    renamed = next(
        i for i, (_, what, path) in enumerate(notes) if what == "rename" and path.parts[-2:] == ("weights", "kept")
    )
    folder = notes[renamed][2]
    before = {path.name for _, what, path in notes[:renamed] if what == "sync" and ".kept." in str(path)}
    assert before >= {"adapter_config.json", "adapter_model.safetensors", "optimizer.safetensors", "checksums.json"}
    assert any(name.startswith(".kept.") for name in before)  # the names in the folder
    after = [path for _, what, path in notes[renamed + 1 :] if what == "sync"]
    # The save's result is the next record of the journal, and its row shares a transaction with the checkpoint's. Other
    # rows may be written at any time, counts of tokens for instance.
    result = next(i for i, path in enumerate(after) if path.suffix == ".seg")
    assert after.index(folder.parent) < result
    assert data / "loreloop.db-wal" in after[result:]


def test_a_server_that_is_to_survive_processes_alone_syncs_tensors_alone(data: Path) -> None:
    with running_server(str(data), OPTIONS) as running:
        saved(running)
    synced = {path.name for _, what, path in noted(data) if what == "sync"}
    # SQLite syncs the head of a new log with its name in the data folder, and before it folds one into the database.
    others = {name for name in synced if ".safetensors" not in name}
    assert others <= {data.name, "loreloop.db", "loreloop.db-wal"}


@pytest.mark.parametrize("which", ["optimizer.safetensors", ".seg", "journal/pins"])
def test_a_server_whose_disk_refuses_a_sync_stops_and_says_so(
    data: Path, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_server(str(data), OPTIONS, durability="power") as running:
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

"""`loreloop repair` on folders of a real server: what the database has lost is adopted, what is damaged is named."""

import json
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loreloop.cli.server import running_server
from tests.sdk.clients import GREEDY, IDS, fit, prompt, service, trainer

pytestmark = pytest.mark.filterwarnings("ignore")
OPTIONS = ["--model", "tiny", "--precision", "fp32", "--threads", "1"]


def repaired(data: Path, *arguments: str) -> tuple[int, list[dict[str, object]], str]:
    command = [sys.executable, "-m", "loreloop.cli", "repair", "--data", str(data), "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.returncode, json.loads(done.stdout or "[]"), done.stderr


def states(rows: list[dict[str, object]]) -> dict[str, object]:
    return {str(row["path"]).rpartition("/")[2]: row["state"] for row in rows}


def test_what_lies_in_a_folder_without_a_database_is_served_again(tmp_path: Path, tiny_folder: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny").symlink_to(tiny_folder)
    with running_server(str(tmp_path), OPTIONS) as running:
        client = trainer(running)
        fit(client, 2)
        state, weights = client.save_state("s").result(60).path, client.save_weights_for_sampler("w").result(60).path
        client.save_state("bad").result(60)
        said = list(
            service(running)
            .create_sampling_client(weights)
            .sample(prompt(IDS), 1, GREEDY)
            .result(60)
            .sequences[0]
            .tokens
        )
    assert repaired(tmp_path)[:2] == (0, [])
    (damaged,) = tmp_path.glob("checkpoints/*/weights/bad/adapter_model.safetensors")
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    for file in tmp_path.glob("loreloop.db*"):
        file.unlink()
    code, _, told = repaired(tmp_path)
    assert code == 1
    assert "missing" in told
    assert states(repaired(tmp_path, "--new-database")[1]) == {"s": "to adopt", "w": "to adopt", "bad": "damaged"}
    assert not list(tmp_path.glob("loreloop.db*"))  # it was only told
    (tmp_path / "loreloop.db-wal").write_bytes(b"of the lost one")
    (kept,) = tmp_path.glob("checkpoints/*/weights")
    (kept / "an odd name").mkdir()
    code, rows, told = repaired(tmp_path, "--new-database", "--yes")
    assert (tmp_path / "loreloop.db-wal.lost").read_bytes() == b"of the lost one"
    odd = next(row for row in rows if "an odd name" in str(row["path"]))
    assert "cannot be used" in str(odd["what"])
    (kept / "an odd name").rmdir()
    rows.remove(odd)
    assert (code, states(rows)) == (1, {"s": "adopted", "w": "adopted", "bad": "damaged"})
    assert "adapter_model.safetensors" in str(next(row["what"] for row in rows if row["state"] == "damaged"))
    key = told.split("with the key ")[1].split(",")[0]
    with running_server(str(tmp_path), OPTIONS) as running:
        again = service(running, key)
        sampler = again.create_sampling_client(weights)
        assert list(sampler.sample(prompt(IDS), 1, GREEDY).result(60).sequences[0].tokens) == said
        assert fit(again.create_training_client_from_state_with_optimizer(state).result(60), 1)
    assert states(repaired(tmp_path)[1]) == {"bad": "damaged"}


def test_rows_without_files_go_only_when_asked(tmp_path: Path) -> None:
    from loreloop.store import audit, checkpoints
    from tests.store.place import Place

    place = Place(tmp_path)
    place.write(checkpoints.add, place.checkpoint(place.run(), "one"))
    place.store.close()
    assert states(repaired(tmp_path, "--yes")[1]) == {"one": "files gone"}
    code, rows, told = repaired(tmp_path, "--yes", "--forget")
    assert (code, rows) == (1, [])
    assert "is a disk missing?" in told
    (tmp_path / "checkpoints").mkdir()
    assert states(repaired(tmp_path, "--yes", "--forget")[1]) == {"one": "forgotten"}
    place.open()
    (entry,) = place.read(audit.between, 0.0, time.time() + 1, "checkpoint")
    assert (entry.event, entry.key_id, entry.details["why"]) == ("checkpoint_delete", place.ann, "its files were gone")
    place.store.close()
    assert repaired(tmp_path)[:2] == (0, [])


def test_a_folder_with_a_database_gets_no_new_one(tmp_path: Path) -> None:
    sqlite3.connect(tmp_path / "loreloop.db").execute("CREATE TABLE t (x)")
    code, _, told = repaired(tmp_path, "--new-database")
    assert code == 1
    assert "move it aside" in told
    shutil.rmtree(tmp_path)
    assert repaired(tmp_path)[0] == 1

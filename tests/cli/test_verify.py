"""`loreloop checkpoints verify` and `models remove`: what is still whole, and what is left without its base."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file

from loreloop.cli.main import cli
from loreloop.host.supervisor import lock_data
from loreloop.protocol.checksums import SUMS_FILE, check_all_files, sum_of_bytes, write_sums
from loreloop.protocol.errors import BadRequest, Conflict, Gone
from loreloop.protocol.link import ModelSnapshot, Snapshotted
from loreloop.protocol.training import SavedResult, SaveState
from loreloop.store import checkpoints, journal
from loreloop.store.rows import AddCheckpoint
from tests.store.place import BASE, Place

CONTENT = b"weights"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path / "data")
    yield made
    made.store.close()


def ended(place: Place, *arguments: str) -> Result:
    return CliRunner().invoke(cli, [*arguments, "--data", str(place.folder)])


def saved(place: Place, run_id: str, name: str, *, summed: bool = True) -> Path:
    """The folder of a checkpoint that lies there as a save leaves it."""
    folder = place.folder / "checkpoints" / name
    folder.mkdir(parents=True)
    (folder / "adapter.safetensors").write_bytes(CONTENT)
    crc32 = write_sums(folder, {"adapter.safetensors": sum_of_bytes(CONTENT)}) if summed else None
    row = place.checkpoint(run_id, name)
    place.write(checkpoints.add, msgspec.structs.replace(row, folder=str(folder), sums_crc32=crc32))
    return folder


def states(result: Result) -> dict[str, Any]:
    return {row["path"].rpartition("/")[2]: row for row in json.loads(result.stdout)}


def test_each_checkpoint_is_ok_damaged_or_gone(place: Place) -> None:
    run_id = place.run()
    saved(place, run_id, "whole")
    saved(place, run_id, "foreign", summed=False)
    assert ended(place, "checkpoints", "verify").exit_code == 0
    (saved(place, run_id, "flipped") / "adapter.safetensors").write_bytes(b"Weights")
    (saved(place, run_id, "missing") / "adapter.safetensors").unlink()
    (saved(place, run_id, "unlisted") / SUMS_FILE).unlink()
    write_sums(saved(place, run_id, "relisted"), {})
    shutil.rmtree(saved(place, run_id, "gone"))
    result = ended(place, "checkpoints", "verify", "--json")
    assert result.exit_code == 1
    found = states(result)
    wanted = dict.fromkeys(("flipped", "missing", "unlisted", "relisted"), "damaged")
    wanted |= {"whole": "ok", "foreign": "unchecked", "gone": "gone"}
    assert {name: row["state"] for name, row in found.items()} == wanted
    assert "adapter.safetensors is damaged" in found["flipped"]["what"]
    assert "adapter.safetensors cannot be read" in found["missing"]["what"]
    assert SUMS_FILE in found["unlisted"]["what"]
    assert SUMS_FILE in found["relisted"]["what"]


def test_one_checkpoint_is_verified_alone(place: Place) -> None:
    run_id = place.run()
    saved(place, run_id, "whole")
    (saved(place, run_id, "flipped") / "adapter.safetensors").write_bytes(b"Weights")
    for name, exit_code in (("whole", 0), ("flipped", 1)):
        result = ended(place, "checkpoints", "verify", f"tinker://{run_id}/weights/{name}", "--json")
        assert (result.exit_code, list(states(result))) == (exit_code, [name])


def replaced(folder: Path, value: float) -> None:
    """Other weights in the place of those that were saved, by another tool."""
    save_file({"a": torch.full((4,), value)}, folder / "new")
    (folder / "new").replace(folder / "adapter.safetensors")


@pytest.mark.parametrize("list_deleted", [False, True])
def test_files_that_were_changed_on_purpose_are_taken_once_they_are_accepted(place: Place, list_deleted: bool) -> None:
    run_id = place.run()
    path, folder = f"tinker://{run_id}/weights/mine", saved(place, run_id, "mine")
    replaced(folder, 2.0)
    if list_deleted:
        (folder / SUMS_FILE).unlink()
    row = place.read(checkpoints.of_anyone, place.checkpoint(run_id, "mine").path)
    with pytest.raises(Gone, match="loreloop checkpoints accept"):
        check_all_files(checkpoints.folder_of(row))
    assert ended(place, "checkpoints", "accept", path).exit_code == 0
    assert states(ended(place, "checkpoints", "verify", path, "--json"))["mine"]["state"] == "ok"
    row = place.read(checkpoints.of_anyone, row.path)
    check_all_files(checkpoints.folder_of(row))
    assert row.size_bytes == (folder / "adapter.safetensors").stat().st_size
    assert sorted(file.name for file in folder.iterdir()) == ["adapter.safetensors", SUMS_FILE]
    replaced(folder, 3.0)
    assert states(ended(place, "checkpoints", "verify", path, "--json"))["mine"]["state"] == "damaged"


def test_damaged_weights_and_those_of_a_running_server_are_not_accepted(place: Place) -> None:
    run_id = place.run()
    path, folder = f"tinker://{run_id}/weights/mine", saved(place, run_id, "mine")
    refused = ended(place, "checkpoints", "accept", path)  # of the fixture, which are no safetensors
    assert isinstance(refused.exception, BadRequest)
    assert "adapter.safetensors is not taken" in refused.exception.message
    replaced(folder, float("nan"))
    refused = ended(place, "checkpoints", "accept", path)
    assert isinstance(refused.exception, BadRequest)
    assert "NaN" in refused.exception.message
    replaced(folder, 1.0)
    with lock_data(place.folder / "run"):
        refused = ended(place, "checkpoints", "accept", path)
    assert isinstance(refused.exception, BadRequest)
    assert "A server is running" in refused.exception.message
    assert ended(place, "checkpoints", "accept", path).exit_code == 0


def test_files_that_the_next_start_writes_anew_are_not_accepted(place: Place) -> None:
    """The server was killed: it has left no snapshot, and the save is executed again."""
    run_id = place.run()
    path, folder = f"tinker://{run_id}/weights/mine", saved(place, run_id, "mine")
    row = place.read(checkpoints.of_anyone, place.checkpoint(run_id, "mine").path)
    op = SaveState(run_id, 1, f"{run_id}:1", str(folder))
    place.append(op, AddCheckpoint(row, ttl_seconds=None))
    place.execute(1, op, result=SavedResult(1, row.sums_crc32 or ""))
    replaced(folder, 2.0)
    refused = ended(place, "checkpoints", "accept", path)
    assert isinstance(refused.exception, Conflict)
    assert "Start a server and stop it" in refused.exception.message
    place.write(journal.record_snapshot, BASE, Snapshotted(1, (ModelSnapshot(run_id, 1, 2, ""),)))
    assert ended(place, "checkpoints", "accept", path).exit_code == 0


def test_a_model_that_checkpoints_need_is_removed_only_by_force(place: Place, tiny_folder: Path) -> None:
    folder = place.folder / "models" / BASE
    shutil.copytree(tiny_folder, folder)
    saved(place, place.run(), "mine")
    refused = ended(place, "models", "remove", BASE)
    assert isinstance(refused.exception, Conflict)
    assert "1 checkpoint " in refused.exception.message
    assert "--force" in refused.exception.message
    assert folder.exists()
    removed = ended(place, "models", "remove", BASE, "--force")
    assert removed.exit_code == 0
    assert "Left without it: 1 checkpoint." in removed.stdout
    assert not folder.exists()
    assert ended(place, "checkpoints", "verify").exit_code == 0

"""`loreloop checkpoints verify` and `models remove`: what is still whole, and what is left without its base."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from loreloop.cli.main import cli
from loreloop.protocol.checksums import SUMS_FILE, sum_of_bytes, write_sums
from loreloop.protocol.errors import Conflict
from loreloop.store import checkpoints
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

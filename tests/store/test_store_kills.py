"""A process that writes is killed at any moment: what it was told is committed is there, whole, and the next one goes
on from it."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from loreloop.protocol.training import StepResult
from tests.scheduler.ops import forward_backward
from tests.store.place import Place

ROOT = Path(__file__).parent.parent.parent


def lines_until_killed(place: Place, module: str, *arguments: str, seconds: float) -> list[str]:
    """Starts a module as a child, kills it so long after its first line, gives the whole lines it printed."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    command = [sys.executable, "-m", module, str(place.folder), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, env=environment) as child:
        assert child.stdout is not None
        head = child.stdout.readline()
        threading.Timer(seconds, child.kill).start()
        text = (head + child.stdout.read()).decode()
    return text[: text.rfind("\n")].splitlines()


def numbers(lines: list[str], verb: str) -> set[int]:
    return {int(line.split()[1]) for line in lines if line.startswith(verb)}


def test_what_was_acknowledged_survives_one_kill_after_another(tmp_path: Path) -> None:
    place = Place(tmp_path / "data")
    run_id = place.run()
    accepted: set[int] = set()
    executed: set[int] = set()
    for life, seconds in enumerate((0.02, 0.11, 0.23)):
        place.store.close()
        lines = lines_until_killed(place, "tests.store.appending", run_id, str(life * 1000), seconds=seconds)
        accepted |= numbers(lines, "accepted")
        executed |= numbers(lines, "executed")
        place.open()
        found = {op.seq_id: op for op in place.replay().ops}
        assert accepted <= found.keys()
        assert all(op == forward_backward(run_id, seq) for seq, op in found.items())
        for seq in executed:
            outcome = place.outcome(f"{run_id}:{seq}")
            assert outcome is not None
            assert outcome.result == StepResult({"seq:mean": float(seq)})
        planned = {int(request.rpartition(":")[2]) for b in place.replay().batches for request in b.request_ids}
        assert executed <= planned <= found.keys()
    assert executed
    place.store.close()


@pytest.mark.parametrize("cut_bytes", [1, 9, 60])
def test_a_record_torn_by_a_kill_is_no_obstacle(tmp_path: Path, cut_bytes: int) -> None:
    """Its row was never committed: the file ends in the middle of it."""
    place = Place(tmp_path / "data")
    ops = [forward_backward(place.run(), number) for number in range(4)]
    for op in ops:
        place.append(op)
    place.store.segments.append(bytes(100))
    place.store.close()
    (path,) = (place.folder / "journal").glob("*.seg")
    os.truncate(path, path.stat().st_size - cut_bytes)
    place.open()
    place.append(forward_backward(place.run(), 4))
    place.reopen()
    assert [op.seq_id for op in place.replay().ops] == [0, 1, 2, 3, 4]
    place.store.close()


@pytest.mark.timed
def test_a_store_is_open_again_quickly(tmp_path: Path) -> None:
    place = Place(tmp_path / "data")
    for number in range(20):
        place.append(forward_backward(place.run(), number, n_tokens=50_000))
    start = time.process_time()
    place.reopen()
    assert time.process_time() - start < 1.0
    place.store.close()

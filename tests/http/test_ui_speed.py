"""Pages answer at once however much there is: a thousand runs, of which some have a full series, and 100,000 turns."""

import asyncio
import time

import msgspec
import pytest
from sqlalchemy import Connection, insert

from loreloop.protocol.training import LoraSpec
from loreloop.store import deployments
from loreloop.store.rows import Arm, RecordingRule, Split
from loreloop.store.schema import CHECKPOINTS, RUNS
from loreloop.store.series import MOST_POINTS
from loreloop.store.series_tables import RUN_SERIES
from loreloop.store.turn_tables import EPISODES, TURNS
from tests.http.browser import signed_in
from tests.http.site import Site, play
from tests.store.place import write_now

N_RUNS, N_FULL, N_TURNS, SECONDS = 1000, 20, 100_000, 0.1


def fill(connection: Connection, key_id: str, session_id: str) -> None:
    lora = msgspec.json.encode(LoraSpec(8, 1)).decode()
    usual = {"session_id": session_id, "key_id": key_id, "base_model": "fake", "lora": lora, "live": False}
    ids = [f"{session_id}:train:{number}" for number in range(N_RUNS)]
    connection.execute(
        insert(RUNS),
        [{"id": run_id, "created": 1.0, "last_request": float(n), **usual} for n, run_id in enumerate(ids)],
    )
    saved = {"kind": "weights", "key_id": key_id, "folder": "x", "created": 1.0, "size_bytes": 7, "public": False}
    connection.execute(
        insert(CHECKPOINTS), [{"run_id": run_id, "name": str(n), **saved} for run_id in ids for n in range(5)]
    )
    values = '{"loss":1.25,"gradient_norm":0.5,"update_norm":0.01,"learning_rate":0.0001,"tokens_per_second":512.0}'
    # Ten thousand steps in as many rows as a run may have.
    points = [{"step": 1 + 10 * n, "n_steps": 10, "created": 1.0, "values": values} for n in range(MOST_POINTS)]
    for place, run_id in enumerate(ids):
        some = points if place >= N_RUNS - N_FULL else points[:20]
        connection.execute(insert(RUN_SERIES), [{"run_id": run_id, **point} for point in some])


def record(connection: Connection) -> None:
    deployments.set(
        connection, "bot", None, Split(Arm("fake", "fake")), 1.0, "me", recording=RecordingRule(record=True)
    )
    numbers = range(1, N_TURNS + 1)
    of_bot = {"deployment": "bot", "key_id": "k", "heard": 0}
    episodes = [{"number": n, "id": f"e{n}", "weights": "w", "mixed": False, **of_bot} for n in numbers]
    connection.execute(insert(EPISODES), episodes)
    usual = {"user": "u", "created": 1.0, "state": "kept", "arm": "main", "version": 1, "consent": True, "side": False}
    turns = [{"number": n, "id": f"t{n}", "episode": n, "n_bytes": 9, **usual, **of_bot} for n in numbers]
    connection.execute(insert(TURNS), turns)


@pytest.mark.timed
def test_pages_of_a_thousand_runs_answer_at_once() -> None:
    async def scene(site: Site) -> None:
        write_now(site.office.store, fill, site.office.key_id, site.office.session_id)
        write_now(site.office.store, record)
        browser = await signed_in(site, "admin")
        newest = f"{site.office.session_id}:train:{N_RUNS - 1}"
        for path in ("/runs", "/runs?offset=900", f"/runs/{newest}", "/operation", "/deployments/bot", "/jobs"):
            taken = []
            for _ in range(5):
                started = time.perf_counter()
                await browser.look(path)
                taken.append(time.perf_counter() - started)
                await asyncio.sleep(0)
            assert min(taken) < SECONDS, path

    play(scene, engine=False, hang_seconds=120)

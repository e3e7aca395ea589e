"""The soak, for a while, on a tiny model: clients that train, sample, hang up and cancel leave nothing behind."""

import asyncio
from pathlib import Path

import pytest

from bench.soak import Ledger, growth, soak
from loreloop.cli.server import running_server


@pytest.mark.slow
def test_clients_that_hang_up_and_cancel_leave_nothing_behind(tmp_path: Path, tiny_folder: Path) -> None:
    # A server of its own, since all that it has counted is compared with the ledger.
    with running_server(str(tmp_path), ["--model", str(tiny_folder), "--threads", "1"]) as server:
        ledger, memory_mib = asyncio.run(soak(server, 20, str(tiny_folder)))
    assert ledger.problems == []
    assert ledger.counts["steps"] > 8
    assert ledger.counts["disconnects"] > 10
    assert ledger.cancelled
    assert ledger.ends.keys() == ledger.accepted
    # In less than a minute caches still fill, so that this finds only what grows with every request.
    assert growth(memory_mib) < 0.25


def test_growth_is_what_comes_behind_the_warm_up() -> None:
    assert growth([10.0] * 20 + [100.0] * 40) == 0
    assert growth([10.0] * 20 + [100.0] * 20 + [103.0] * 20) == pytest.approx(0.03)


def test_a_ledger_finds_what_ends_twice_and_not_alike() -> None:
    import httpx

    ledger = Ledger()
    for content in (b"a", b"a", b"b"):
        ledger.ended("x:train:0:1", httpx.Response(200, content=content))
    assert ledger.problems == ["x:train:0:1 ended twice, and not alike"]

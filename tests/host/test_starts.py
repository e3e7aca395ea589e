"""A server whose process dies at its start again and again stops, and says why; one that comes up goes on for ever."""

import signal
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from loreloop.config import Config
from loreloop.host import supervisor
from loreloop.host.server_plan import ServerPlan
from loreloop.host.starts import MAX_STARTS, Starts, came_up, reason_of, say_up
from loreloop.host.supervisor import Supervisor
from loreloop.protocol.errors import ServerError
from loreloop.protocol.syncing import CANNOT_SYNC


@pytest.fixture(autouse=True)
def _signals_as_they_were() -> Iterator[None]:
    """A supervisor ignores signals at its end, and here it ends in the process that runs all other tests; whatever they
    start would not hear Ctrl-C any more."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_the_same_reason_is_counted_and_another_one_begins_anew() -> None:
    starts = Starts()
    counted = [starts.in_vain(f"line {number}: no memory at 0x{number:x}f", 1) for number in range(MAX_STARTS - 1)]
    assert counted == [False] * (MAX_STARTS - 1)
    assert not starts.in_vain("another reason", 1)
    assert [starts.in_vain("another reason", 1) for _ in range(MAX_STARTS - 1)][-1]


def test_a_life_of_the_http_process_and_a_start_that_worked_begin_the_count_anew() -> None:
    starts = Starts()
    assert not any(starts.in_vain("it hung up", http_life) for http_life in range(20))
    for _ in range(20):
        assert not starts.in_vain("killed", 1)
        starts.succeeded()


def test_a_process_says_once_that_it_is_up(tmp_path: Path) -> None:
    assert not came_up(tmp_path / "up", 7)
    say_up(tmp_path / "up", 7)
    assert [came_up(tmp_path / "up", 7) for _ in range(2)] == [True, False]


def test_a_reason_is_what_was_said_last_and_how_it_ended() -> None:
    assert reason_of(1, "ValueError: no") == "ValueError: no (exit code 1)"
    assert reason_of(-signal.SIGKILL, "") == "signal SIGKILL"


def test_a_server_whose_engine_dies_at_every_start_stops_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(supervisor, "FIRST_PAUSE_SECONDS", 0.01)
    config = Config(data_dir=str(tmp_path), port=0)
    plan = ServerPlan(config, {"broken": str(tmp_path)})
    server = Supervisor(msgspec.structs.replace(plan, nonce="n"), {}, ("something was seen",))
    server.engines[0].arguments[0] = str(tmp_path / "no plan")
    with pytest.raises(ServerError, match=f"broken died {MAX_STARTS} times at its start.*FileNotFoundError.*no plan"):
        server.run()
    assert server.engines[0].lives == MAX_STARTS
    assert server.http.lives == 1
    assert "something was seen" in capfd.readouterr().err
    assert "something was seen" in config.log_path.read_text()
    assert not plan.address_file.exists()


def test_what_an_orphan_exits_with_does_not_end_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first process of a container reaps processes that it has not started."""
    server = Supervisor(ServerPlan(Config(data_dir=str(tmp_path), port=0), {"fake": str(tmp_path)}), {})
    # What `wait` gives of processes that nobody here has started, and then the end by a signal.
    reaped = [(1 << 30, code << 8) for code in (CANNOT_SYNC, supervisor.CANNOT_START, 0)]

    def wait() -> tuple[int, int]:
        if reaped:
            return reaped.pop(0)
        raise supervisor._Stop

    monkeypatch.setattr(server, "_start", lambda child: None)
    monkeypatch.setattr(supervisor.os, "wait", wait)
    server.run()
    assert not reaped

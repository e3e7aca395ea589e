"""`loreloop doctor`: a good set-up is called good, each trouble by its name with what to do, and nothing is changed."""

import json
import os
import socket
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from loreloop.cli.doctor_packages import Need, need_of, within
from loreloop.cli.main import cli
from loreloop.cli.server import RunningServer
from loreloop.config import Config
from loreloop.host.findings import file_system_of, folder_findings, is_locked
from loreloop.host.server_plan import running_address
from loreloop.host.supervisor import lock_data
from loreloop.protocol.errors import BadRequest, NotFound, WrongSettings
from loreloop.store.inspection import keys_seen
from loreloop.store.steps import STEPS

NOBODY = 65534


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    """Those of a server that takes any port."""
    file = tmp_path / "server.toml"
    file.write_text("port = 0\n")
    return file


def asked(data: Path, settings: Path | None, *arguments: str) -> Result:
    config = ["--config", str(settings)] if settings else []
    return CliRunner().invoke(cli, ["doctor", "--data", str(data), *config, *arguments])


def findings(data: Path, settings: Path | None, *arguments: str) -> dict[str, dict[str, Any]]:
    result = asked(data, settings, *arguments, "--json")
    assert result.exit_code in (0, 1), result.exception
    rows = json.loads(result.stdout)
    assert result.exit_code == any(row["state"] == "wrong" for row in rows)
    return {row["what"]: row for row in rows}


def test_a_folder_that_is_not_there_yet_is_well_and_is_not_made(tmp_path: Path, settings: Path) -> None:
    data = tmp_path / "data"
    found = findings(data, settings)
    assert {name: row for name, row in found.items() if row["state"] == "wrong"} == {}
    assert "not there yet" in found["data folder"]["found"]
    for name in ("python", "libraries", "extras", "processor", "disk", "server", "port", "keys", "sandbox", "clock"):
        assert name in found
    assert not data.exists()


def test_people_read_lines_and_a_count(tmp_path: Path, settings: Path) -> None:
    told = asked(tmp_path / "data", settings)
    assert told.exit_code == 0, told.output
    lines = told.stdout.splitlines()
    assert lines[0].split()[:2] == ["ok", "python"]
    assert lines[-1].startswith("0 wrong, ")


def test_a_port_that_is_taken_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        file.write_text(f"port = {taken.getsockname()[1]}\n")
        found = findings(tmp_path / "data", file)
    assert found["port"]["state"] == "wrong"
    assert "--port" in found["port"]["advice"]


def test_a_folder_that_others_may_read_and_a_clock_that_went_back_are_told(tmp_path: Path, settings: Path) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o755)
    data.chmod(0o755)
    (data / "loreloop.log").touch()
    ahead = time.time() + 7200
    os.utime(data / "loreloop.log", (ahead, ahead))
    found = findings(data, settings)
    assert (found["rights"]["state"], found["clock"]["state"]) == ("warning", "warning")
    assert f"chmod 700 {data}" in found["rights"]["advice"]
    assert "7200 s" in found["clock"]["found"] or "7199 s" in found["clock"]["found"]
    assert found["sync"]["state"] in ("ok", "warning")
    assert [file.name for file in data.iterdir()] == ["loreloop.log"]  # what was tried is gone


def test_a_damaged_database_and_a_key_of_another_folder_are_told(
    tmp_path: Path, settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    assert CliRunner().invoke(cli, ["keys", "create", "ann", "--data", str(data)]).exit_code == 0
    monkeypatch.setenv("TINKER_API_KEY", "tml-of-somewhere-else")
    found = findings(data, settings)
    assert found["keys"]["found"].startswith("1 can")
    assert found["key of this shell"]["state"] == "warning"
    (data / "loreloop.db").write_bytes(b"no database at all")
    found = findings(data, settings)
    assert found["database"]["state"] == "wrong"
    assert "loreloop.db" in found["database"]["found"]


def test_a_database_of_an_older_version_is_looked_at_and_left_as_it_is(tmp_path: Path, settings: Path) -> None:
    data = tmp_path / "data"
    assert CliRunner().invoke(cli, ["keys", "create", "ann", "--data", str(data)]).exit_code == 0
    with closing(sqlite3.connect(data / "loreloop.db")) as database:
        database.execute("DROP TABLE run_series")
        database.execute("DELETE FROM migrations WHERE number = (SELECT max(number) FROM migrations)")
        database.commit()
        before = steps_of(database)
    assert findings(data, settings)["keys"]["found"].startswith("1 can")
    with closing(sqlite3.connect(data / "loreloop.db")) as database:
        assert steps_of(database) == before == len(STEPS) - 1


def steps_of(database: sqlite3.Connection) -> int:
    return database.execute("SELECT count(*) FROM migrations").fetchone()[0]


def test_a_database_that_another_process_writes_to_holds_nobody_up(tmp_path: Path, settings: Path) -> None:
    data = tmp_path / "data"
    assert CliRunner().invoke(cli, ["keys", "create", "ann", "--data", str(data)]).exit_code == 0
    with closing(sqlite3.connect(data / "loreloop.db", isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")
        assert findings(data, settings)["keys"]["found"].startswith("1 can")


def test_a_folder_of_another_user_is_told_and_hides_nothing(tmp_path: Path) -> None:
    data = tmp_path / "closed" / "data"
    data.mkdir(parents=True)
    data.parent.chmod(0)
    config = Config(data_dir=str(data))

    def look() -> dict[str, str]:
        with pytest.raises(BadRequest, match="cannot be used"):
            keys_seen(data, "", time.time())
        with pytest.raises(PermissionError):
            running_address(config)
        return {each.what: each.state for each in folder_findings(config)}

    try:
        found = as_nobody(look)
    finally:
        data.parent.chmod(0o700)
    assert (found["data folder"], found["clock"]) == ("wrong", "ok")
    assert "disk" in found


def as_nobody(function: Callable[[], dict[str, str]]) -> dict[str, str]:
    """What a function gives in a process of a user who may do nothing special."""
    if os.geteuid() != 0:
        return function()
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        os.setuid(NOBODY)
        with os.fdopen(writing, "w") as file:
            try:
                file.write(json.dumps(function()))
            finally:
                file.flush()
                os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        told = file.read()
    os.waitpid(child, 0)
    return json.loads(told)


def test_a_file_in_the_place_of_the_folder_hides_nothing(tmp_path: Path, settings: Path) -> None:
    data = tmp_path / "data"
    data.write_text("")
    found = findings(data, settings)
    assert found["data folder"]["state"] == "wrong"
    assert "clock" in found


def test_what_a_file_stands_in_the_way_of_is_wrong(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.write_text("")
    by_name = {each.what: each for each in folder_findings(Config(data_dir=str(data)))}
    assert by_name["data folder"].state == "wrong"


def test_a_model_that_is_not_there_is_wrong_before_a_start(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text('port = 0\nmodels = ["no-such-model"]\n')
    found = findings(tmp_path / "data", file)
    assert found["model"]["state"] == "wrong"
    with pytest.raises(NotFound, match="no-such-model"):
        raise asked(tmp_path / "data", file, "--model", "no-such-model").exception  # type: ignore[misc]


def test_settings_that_are_wrong_are_said_at_once(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text("prot = 1\n")
    assert isinstance(asked(tmp_path / "data", file).exception, WrongSettings)


def test_a_model_is_checked_and_its_figures_are_told(tmp_path: Path, tiny_folder: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text(f'port = 0\nmodels = ["{tiny_folder}"]\n[engine]\nprecision = "fp32"\nthreads = 1\n')
    found = findings(tmp_path / "data", file, "--model", str(tiny_folder))
    assert "fp32" in found["model"]["found"]
    for name in ("split", "co-batch of samples", "co-batch of training", "mismatch"):
        figures = found[name]["figures"]
        assert found[name]["state"] == "ok", found[name]
        assert 0 <= figures["mean_nats"] <= figures["largest_nats"] <= 1e-4
        assert figures["tokens"] > 50
    assert not (tmp_path / "data").exists()


def test_a_running_server_is_found_with_its_settings(server: RunningServer) -> None:
    found = findings(server.data, None)
    assert found["server"]["found"].startswith(f"one runs at {server.url}")
    assert "port" not in found
    assert "fp32" in found["processor"]["found"]  # as the server was started
    assert found["memory"]["found"].startswith("tiny takes")


def test_the_lock_of_a_server_is_seen_and_not_taken(tmp_path: Path) -> None:
    assert not is_locked(tmp_path / "run" / "lock")
    with lock_data(tmp_path / "run"):
        assert is_locked(tmp_path / "run" / "lock")
    assert not is_locked(tmp_path / "run" / "lock")


def test_the_file_system_of_a_folder_is_the_one_that_lies_over_the_others() -> None:
    assert file_system_of(Path("/proc")) == "proc"


@pytest.mark.parametrize(
    ("version", "bounds", "fits"),
    [
        ("2.13.0+cpu", ">=2.11,<3", True),
        ("3.0", "<3,>=2.11", False),
        ("3", "<3.0.1", True),
        ("2.9", ">=2.11", False),
        ("5.5.4", "==5.5.4", True),
        ("1.0", "!=1.0.0", False),
        ("1.0", "", True),
    ],
    ids=["in", "over", "shorter", "under", "equal", "unequal", "any"],
)
def test_versions_are_held_against_bounds(version: str, bounds: str, fits: bool) -> None:
    assert within(version, bounds) == fits


def test_lines_of_what_a_package_needs_are_read() -> None:
    assert need_of("uvicorn[standard]<1,>=0.34") == Need("uvicorn", "<1,>=0.34", "")
    assert need_of("tinker<0.39,>=0.38; extra == 'learn'") == Need("tinker", "<0.39,>=0.38", "learn")
    assert need_of('triton>=3.6; sys_platform == "no-such-system" and extra == "gpu"') is None

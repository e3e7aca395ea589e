"""`loreloop deploy`: works on the data folder, beside a server too; what it is given is checked when it is given."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from loreloop.cli.deploy import deploy
from loreloop.cli.persons import persons
from loreloop.protocol.errors import BadRequest, LoreloopError, NotFound
from loreloop.protocol.loop_rest import UseTurns
from loreloop.protocol.paths import CheckpointKind
from loreloop.store import checkpoints, deployments, turn_keeping, turn_uses
from loreloop.store.rows import RecordingRule, Split
from tests.cli.test_cli import loreloop
from tests.store.place import Place
from tests.store.test_turns import new
from tests.tiny import make_tiny_model


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """Open all the while, as by a server."""
    made = Place(tmp_path)
    yield made
    made.store.close()


def saved(place: Place, name: str, kind: CheckpointKind = CheckpointKind.SAMPLER) -> str:
    row = place.checkpoint(place.run(), name, kind)
    place.write(checkpoints.add, row)
    return str(row.path)


def run(place: Place, *arguments: str) -> list[dict[str, Any]]:
    """What a verb prints with --json; its error is raised."""
    command = [*arguments, "--data", str(place.folder), "--json"]
    ended = CliRunner().invoke(deploy, command, catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    return json.loads(ended.stdout)


def test_it_is_set_listed_and_rolled_back(place: Place) -> None:
    first, second = saved(place, "a"), saved(place, "b")
    (row,) = run(place, "set", "bot", first)
    assert (row["name"], row["version"], row["target"], row["owner"]) == ("bot", 1, first, place.ann)
    (row,) = run(place, "set", "bot", first, "--canary", f"{second}=2.5%")
    assert (row["version"], row["canary"], row["percent"]) == (2, second, 2.5)
    assert place.read(deployments.current, "bot").version == 2
    (row,) = run(place, "rollback", "bot")
    assert (row["version"], row["target"], row["canary"]) == (3, first, "")
    run(place, "set", "another", second)
    assert [row["name"] for row in run(place, "list")] == ["another", "bot"]
    assert [row["version"] for row in run(place, "history", "bot")] == [3, 2, 1]
    assert [row["version"] for row in run(place, "history", "bot", "--limit", "1")] == [3]


def test_it_is_deleted(place: Place) -> None:
    run(place, "set", "bot", saved(place, "a"))
    ended = CliRunner().invoke(deploy, ["delete", "bot", "--data", str(place.folder)], catch_exceptions=False)
    assert ended.exit_code == 0
    assert run(place, "list") == []


def test_a_base_is_everybodys_until_weights_of_a_key_answer(place: Place) -> None:
    make_tiny_model(place.folder / "models" / "org--tiny")
    assert run(place, "set", "bot", "org/tiny")[0]["owner"] == ""
    assert run(place, "set", "bot", "org/tiny", "--canary", f"{saved(place, 'a')}=1%")[0]["owner"] == place.ann


def test_a_long_list_is_whole(place: Place) -> None:
    arm = place.read(deployments.arm_of, saved(place, "a")).arm
    with place.store.engine.begin() as connection:
        for number in range(1001):
            deployments.set(connection, f"n{number:04}", None, Split(arm), time.time(), "me")
    assert len(run(place, "list")) == 1001


@pytest.mark.parametrize(
    ("name", "target", "error", "said"),
    [
        ("bot", "nowhere", NotFound, "no model 'nowhere'"),
        ("bot", "{run}/sampler_weights/none", NotFound, "no checkpoint"),
        ("bot", "{run}/weights/state", BadRequest, "cannot be sampled from"),
        ("bot", "{run}", BadRequest, "no checkpoint path"),
        ("a/b", "{run}/sampler_weights/a", BadRequest, "cannot be called"),
        ("base", "{run}/sampler_weights/a", BadRequest, "is a base model"),
    ],
)
def test_what_cannot_answer_is_refused_at_once(
    place: Place, name: str, target: str, error: type[LoreloopError], said: str
) -> None:
    saved(place, "a")
    saved(place, "state", CheckpointKind.TRAINING)
    (place.folder / "models" / "base").mkdir(parents=True)
    (place.folder / "models" / "base" / "config.json").write_text("{}")
    with pytest.raises(error, match=said):
        run(place, "set", name, target.format(run=f"tinker://{place.run()}"))
    assert run(place, "list") == []


def test_a_canary_that_cannot_answer_is_refused_too(place: Place) -> None:
    path = saved(place, "a")
    for canary, said in ((f"{path}x=5%", "no checkpoint"), (path, "TARGET=5%"), (f"{path}=500%", "TARGET=5%")):
        with pytest.raises(LoreloopError, match=said):
            run(place, "set", "bot", path, "--canary", canary)
    assert run(place, "list") == []


def test_it_ends_as_other_verbs_do(place: Place) -> None:
    path, data = saved(place, "a"), ("--data", str(place.folder))
    made = loreloop("deploy", "set", "bot", path, *data)
    assert (made.returncode, made.stderr) == (0, "")
    assert path in made.stdout
    ended = loreloop("deploy", "rollback", "bot", *data)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "one version only" in ended.stderr


def test_what_is_recorded_is_said_once_and_stays(place: Place) -> None:
    target = saved(place, "a")
    flags = ["--record", "--retention-days", "7", "--redact", "email,ip", "--redact-matching", "x+", "--consent", "no"]
    (row,) = run(place, "set", "bot", target, *flags)
    assert row["records"]
    wanted = RecordingRule(record=True, retention_days=7, redact=("email", "ip", "x+"), consent=False)
    assert place.read(deployments.current, "bot").recording == wanted
    run(place, "set", "bot", target, "--quota-mib", "5")
    run(place, "rollback", "bot")
    assert place.read(deployments.current, "bot").recording == msgspec.structs.replace(wanted, quota_mib=5)
    (row,) = run(place, "set", "bot", target, "--no-record", "--redact", "")
    assert not row["records"]
    assert place.read(deployments.current, "bot").recording.redact == ()
    with pytest.raises(BadRequest, match="redact"):
        run(place, "set", "bot", target, "--redact", "emails(")


def test_turns_are_counted_and_persons_deleted(place: Place) -> None:
    target = saved(place, "a")
    run(place, "set", "bot", target, "--record")
    version = place.read(deployments.current, "bot")
    turn = new(0, key_id=place.ann, version_created=version.created)
    place.write(turn_keeping.keep, [turn])
    counts = {row["turns"]: row["number"] for row in run(place, "turns", "bot")}
    assert counts == {"waiting": 1, "expired so far": 0, "dropped so far": 0, "mixed episodes": 0}
    place.write(turn_uses.use, "bot", UseTurns("c1", ("t0",)), 1.0)
    where = ["--key", "ann", "--data", str(place.folder)]
    exported = CliRunner().invoke(persons, ["export", "ann", *where], catch_exceptions=False)
    assert [turn["id"] for turn in json.loads(exported.stdout)["turns"]] == ["t0"]
    deleted = CliRunner().invoke(persons, ["delete", "ann", *where, "--json"], catch_exceptions=False)
    assert [row["candidate"] for row in json.loads(deleted.stdout)] == ["c1"]
    assert "1 turns" in deleted.stderr
    assert not [row for row in run(place, "turns", "bot") if row["turns"] == "used"]

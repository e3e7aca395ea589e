"""`loreloop runs` and `loreloop checkpoints`: what there is of all keys, and deleting it, without a server and with."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import tinker
from click.testing import CliRunner, Result

from loreloop.cli.main import cli
from loreloop.cli.server import RunningServer
from loreloop.cli.who import operator
from loreloop.host.meter import FLUSH_SECONDS
from loreloop.protocol.errors import Conflict, LoreloopError, NotFound
from loreloop.protocol.paths import CheckpointKind
from loreloop.store import audit, checkpoints, deployments, runs, usage
from loreloop.store.rows import Split
from tests.scheduler.ops import step
from tests.sdk.clients import datum, trainer
from tests.store.place import Place


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.store.close()


def ended(data: Path, *arguments: str, said: str | None = None) -> Result:
    return CliRunner().invoke(cli, [*arguments, "--data", str(data)], input=said, catch_exceptions=False)


def rows(data: Path, *arguments: str) -> Any:
    result = ended(data, *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def saved(place: Place, name: str, kind: CheckpointKind = CheckpointKind.SAMPLER) -> str:
    row = place.checkpoint(place.run(), name, kind)
    folder = place.folder / "checkpoints" / name
    folder.mkdir(parents=True)
    place.write(checkpoints.add, msgspec.structs.replace(row, folder=str(folder)))
    return str(row.path)


def deploy(place: Place, path: str) -> None:
    place.write(deployments.set, "bot", place.ann, Split(place.read(deployments.arm_of, path).arm), time.time(), "me")


def test_nothing_yet_is_said_with_what_to_do(tmp_path: Path) -> None:
    for command, said in (
        (["runs", "list"], "create_lora_training_client"),
        (["checkpoints", "list"], "save_state"),
        (["keys", "list"], "keys create"),
        (["keys", "usage"], "keys create"),
        (["deploy", "list"], "deploy set"),
        (["tools", "list"], "tools add"),
        (["tools", "calls"], "No tool was called"),
    ):
        result = ended(tmp_path, *command)
        assert (result.exit_code, result.stdout) == (0, ""), command
        assert said in result.stderr
        assert rows(tmp_path, *command) == []


def test_runs_and_checkpoints_are_listed_with_exact_values_in_json(place: Place) -> None:
    path = saved(place, "a")
    deploy(place, path)
    (run,) = rows(place.folder, "runs", "list")
    assert (run["run"], run["key"], run["rank"], run["state"], run["checkpoints"], run["size"]) == (
        place.run(),
        "ann",
        8,
        "live",
        1,
        1,
    )
    assert run["created"] == "1970-01-01T00:16:40+00:00"
    (one,) = rows(place.folder, "checkpoints", "list", "--key", "ann", "--run", f"tinker://{place.run()}")
    assert (one["path"], one["deployed_as"], one["base_model"]) == (path, "bot", "fake")
    assert rows(place.folder, "checkpoints", "list", "--key", "bob") == []
    assert rows(place.folder, "runs", "show", place.run())["checkpoints"] == [one]
    table = ended(place.folder, "runs", "list").stdout
    assert "days ago" in table
    assert "1 B" in table
    assert "days ago" in ended(place.folder, "checkpoints", "show", path).stdout


def test_a_checkpoint_goes_when_it_is_said_to(place: Place) -> None:
    path = saved(place, "a")
    kept = ended(place.folder, "checkpoints", "rm", path, said="n\n")
    assert kept.exit_code == 1
    assert path in kept.stderr
    assert len(rows(place.folder, "checkpoints", "list")) == 1
    (gone,) = rows(place.folder, "checkpoints", "rm", path, "--yes")
    assert gone == {"deleted": path, "size": 1}
    assert rows(place.folder, "checkpoints", "list") == []
    assert not (place.folder / "checkpoints" / "a").exists()
    with pytest.raises(NotFound, match="checkpoints list"):
        ended(place.folder, "checkpoints", "rm", path, "--yes")


def test_what_a_deployment_answers_with_stays(place: Place) -> None:
    path = saved(place, "a")
    deploy(place, path)
    place.write(runs.set_dead, place.run())
    for command in (["checkpoints", "rm", path], ["runs", "rm", place.run(), "--force"]):
        with pytest.raises(Conflict, match="deployment bot"):
            ended(place.folder, *command, "--yes")
    assert len(rows(place.folder, "checkpoints", "list")) == 1


def test_a_run_goes_with_all_that_was_saved_of_it(place: Place) -> None:
    saved(place, "a")
    saved(place, "b", CheckpointKind.TRAINING)
    with pytest.raises(Conflict, match="--force"):
        ended(place.folder, "runs", "rm", place.run(), "--yes")
    run_id = place.run()
    place.write(runs.set_dead, run_id)
    result = ended(place.folder, "runs", "rm", run_id, said="y\n")
    assert result.exit_code == 0, result.output
    assert result.stderr.count("tinker://") == 2
    assert rows(place.folder, "runs", "list") == rows(place.folder, "checkpoints", "list") == []
    assert list((place.folder / "checkpoints").iterdir()) == []


def deleted(place: Place) -> list[tuple[str, str, dict[str, str]]]:
    """What the audit log says of deletions."""
    found = place.read(audit.between, 0.0, time.time() + 1, "checkpoint")
    return [(one.event, one.key_id, {name: one.details[name] for name in ("tinker_path", "by")}) for one in found]


def test_what_is_deleted_without_a_server_stands_in_the_audit_log(place: Place) -> None:
    first, second, third = saved(place, "a"), saved(place, "b"), saved(place, "c", CheckpointKind.TRAINING)
    ended(place.folder, "checkpoints", "rm", first, said="n\n")
    assert deleted(place) == []
    ended(place.folder, "checkpoints", "rm", first, "--yes")
    ended(place.folder, "runs", "rm", place.run(), "--yes", "--force")
    assert sorted(deleted(place), key=lambda one: one[2]["tinker_path"]) == sorted(
        (("checkpoint_delete", place.ann, {"tinker_path": path, "by": operator()}) for path in (first, second, third)),
        key=lambda one: one[2]["tinker_path"],
    )


def test_the_ends_of_a_deleted_runs_operations_are_synced(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = place.run()
    place.append(step(run_id, 1))
    synced: list[Path] = []
    monkeypatch.setattr("loreloop.store.segments.sync_open", lambda descriptor, path: synced.append(path))
    assert ended(place.folder, "runs", "rm", run_id, "--yes", "--force").exit_code == 0
    assert [path.suffix for path in synced] == [".seg"]


@pytest.mark.parametrize(
    "command",
    [["runs", "show", "none"], ["runs", "rm", "none"], ["checkpoints", "show", "tinker://a/weights/b"]],
)
def test_what_is_not_there_is_said(place: Place, command: list[str]) -> None:
    with pytest.raises(LoreloopError, match="list` shows them"):
        ended(place.folder, *command)


def test_a_running_server_counts_lists_and_deletes(server: RunningServer, tmp_path: Path) -> None:
    client, data = trainer(server), [datum(range(10, 16)), datum(range(10, 16))]
    before = used_by_others(server)
    client.forward_backward(data, "cross_entropy").result()
    client.forward(data, "cross_entropy").result()
    path = client.save_weights_for_sampler("first").result().path
    with httpx.Client(base_url=server.url, headers={"x-api-key": server.key}, trust_env=False) as plain:
        body = {"model": path, "prompt": [1, 2, 3], "max_tokens": 4, "logit_bias": {"0": -100, "2": -100}}
        told = plain.post("/v1/completions", json=body).json()["usage"]
    deadline = time.monotonic() + 20
    while (now := used(server))["prompt_tokens"] == before["prompt_tokens"] and time.monotonic() < deadline:
        time.sleep(0.1)
    spent = {name: now[name] - before[name] for name in now}
    assert spent["trained_tokens"] == 10
    assert (spent["prompt_tokens"], spent["generated_tokens"]) == (told["prompt_tokens"], told["completion_tokens"])
    out = tmp_path / "out"
    assert ended(server.data, "checkpoints", "export", path, str(out)).exit_code == 0
    assert (out / "adapter_config.json").exists()
    run_id = path.removeprefix("tinker://").split("/")[0]
    with pytest.raises(Conflict, match="live"):
        ended(server.data, "runs", "rm", run_id, "--yes")
    (gone,) = rows(server.data, "runs", "rm", run_id, "--yes", "--force")
    assert gone["checkpoints"] == 1
    assert run_id not in [row["run"] for row in rows(server.data, "runs", "list")]
    with httpx.Client(base_url=server.url, headers={"x-api-key": server.key}, trust_env=False) as plain:
        assert plain.post("/v1/completions", json={"model": path, "prompt": "a"}).status_code == 404
    with pytest.raises(tinker.NotFoundError):
        client.forward_backward(data, "cross_entropy").result()


def used_by_others(server: RunningServer) -> dict[str, int]:
    """Of the key that other tests share, once all that they used is written."""
    before = None
    while (now := used(server)) != before:
        before = now
        time.sleep(FLUSH_SECONDS + 0.5)
    return now


def used(server: RunningServer) -> dict[str, int]:
    """Of the key that the server was started with."""
    from loreloop.cli.keys import transaction
    from loreloop.store import keys

    with transaction(str(server.data)) as connection:
        key = keys.find(connection, server.key, time.time())
        assert key is not None
        found = usage.by_key(connection).get(key.id)
    names = ("prompt_tokens", "generated_tokens", "trained_tokens")
    return {name: getattr(found, name) if found else 0 for name in names}

"""Weights between keys, by the real SDK: published, taken back, copied, read with an access token; sessions, searches,
traces and accounts."""

import datetime
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import tinker

from loreloop.cli.server import RunningServer
from tests.sdk.clients import GREEDY, IDS, fit, made_key, prompt, service, trainer

pytestmark = pytest.mark.filterwarnings("ignore")
MISSING = "There is no checkpoint"


@pytest.fixture(scope="module")
def saved(server: RunningServer) -> dict[str, str]:
    """A run of the first key with a checkpoint to train from and one to sample from."""
    client = trainer(server)
    fit(client, 1)
    state, weights = client.save_state("s").result().path, client.save_weights_for_sampler("w").result().path
    said = service(server).create_sampling_client(weights).sample(prompt(IDS), 1, GREEDY).result().sequences[0].tokens
    return {"state": state, "weights": weights, "said": " ".join(map(str, said))}


@pytest.fixture(scope="module")
def other(server: RunningServer) -> str:
    return made_key(server, "--scope", "train")


def rest(server: RunningServer, key: str | None = None) -> tinker.RestClient:
    return tinker.RestClient(base_url=server.url, api_key=key or server.key)


@contextmanager
def published(server: RunningServer, path: str) -> Iterator[None]:
    rest(server).publish_checkpoint_from_tinker_path(path).result()
    yield
    rest(server).unpublish_checkpoint_from_tinker_path(path).result()


def said_by(server: RunningServer, key: str, path: str) -> str:
    client = service(server, key).create_sampling_client(path)
    return " ".join(map(str, client.sample(prompt(IDS), 1, GREEDY).result().sequences[0].tokens))


def test_what_is_published_can_be_read_by_whoever_knows_its_path(
    server: RunningServer, saved: dict[str, str], other: str
) -> None:
    state, weights = saved["state"], saved["weights"]
    with pytest.raises(tinker.NotFoundError, match=MISSING):
        rest(server, other).get_weights_info_by_tinker_path(state).result()
    with pytest.raises(tinker.NotFoundError, match=MISSING):
        said_by(server, other, weights)
    run_id = state.split("/")[2]
    with published(server, state), published(server, weights):
        assert rest(server, other).get_weights_info_by_tinker_path(state).result().lora_rank == 8
        assert said_by(server, other, weights) == saved["said"]
        assert fit(service(server, other).create_training_client_from_state(state).result(), 1)
        found = rest(server, other).get_training_run(run_id, access_scope="accessible").result()
        assert found.last_checkpoint is not None
        assert found.last_checkpoint.public
        assert not rest(server, other).list_user_checkpoints().result().checkpoints
        with pytest.raises(tinker.NotFoundError):  # to read is not to own
            rest(server, other).delete_checkpoint_from_tinker_path(state).result()
        with pytest.raises(tinker.NotFoundError):
            rest(server, other).get_training_run(run_id).result()
    with pytest.raises(tinker.NotFoundError, match=MISSING):
        rest(server, other).get_weights_info_by_tinker_path(state).result()
    with pytest.raises(tinker.NotFoundError):
        rest(server, other).get_training_run(run_id, access_scope="accessible").result()


def test_to_publish_twice_changes_nothing(server: RunningServer, saved: dict[str, str]) -> None:
    for _ in range(2):
        rest(server).publish_checkpoint_from_tinker_path(saved["state"]).result()
    for _ in range(2):
        rest(server).unpublish_checkpoint_from_tinker_path(saved["state"]).result()


def test_a_copy_is_the_same_weights_and_outlives_what_it_is_of(server: RunningServer, other: str) -> None:
    client = trainer(server)
    fit(client, 1)
    path = client.save_weights_for_sampler("gone").result().path
    with pytest.raises(tinker.NotFoundError, match=MISSING):
        rest(server, other).copy_weights(path, "mine").result()
    # The owner's key is the token by which another account reads.
    copied = rest(server, other).copy_weights(path, "mine", weights_access_token=server.key).result()
    said = said_by(server, server.key, path)
    rest(server).delete_checkpoint_from_tinker_path(path).result()
    assert said_by(server, other, copied) == said
    run = rest(server, other).list_training_runs(project_id="mine").result().training_runs[0]
    assert run.training_run_id in copied
    assert not rest(server, other).list_training_runs(project_id="another").result().training_runs


def test_training_goes_on_from_a_copy(server: RunningServer, saved: dict[str, str], other: str) -> None:
    mine = service(server, other)
    copied = rest(server, other).copy_weights(saved["state"], "mine", weights_access_token=server.key).result()
    theirs = service(server).create_training_client_from_state_with_optimizer(saved["state"]).result()
    assert fit(mine.create_training_client_from_state_with_optimizer(copied).result(), 2) == fit(theirs, 2)


def test_a_token_that_is_no_key_is_refused(server: RunningServer, saved: dict[str, str], other: str) -> None:
    with pytest.raises(tinker.PermissionDeniedError, match="access token"):
        rest(server, other).copy_weights(saved["state"], "mine", weights_access_token="tml-nobody").result()
    loaded = service(server, other).create_training_client_from_state(saved["state"], weights_access_token=server.key)
    assert fit(loaded.result(), 1)


def test_sessions_are_found_by_what_their_clients_said(server: RunningServer) -> None:
    mark = uuid.uuid4().hex
    ids = []
    for number in range(3):
        arguments = {"user_metadata": {"mark": mark, "number": str(number)}, "project_id": f"p{number % 2}"}
        client = tinker.ServiceClient(
            **arguments, display_name=f"Run no-{number} of {mark}", base_url=server.url, api_key=server.key
        )
        client.get_server_capabilities()
        ids.append(client.holder.get_session_id())
        if number == 0:
            client.close("errored", "it hurt")

    def search(**wanted: object) -> Any:
        return rest(server).search_sessions(tinker.types.SessionSearchRequest.model_validate(wanted))

    assert [one.session_id for one in search(user_metadata={"mark": mark}).result().sessions] == ids[::-1]
    (first,) = search(display_name=f"{mark.upper()} no-0").result().sessions
    assert (first.session_id, first.project_id) == (ids[0], "p0")
    assert first.status is not None
    assert (first.status.type, first.status.reason.type, first.status.detail) == (
        "client_finished",
        "errored",
        "it hurt",
    )
    of_project = search(user_metadata={"mark": mark}, project_ids=["p0"]).result().sessions
    assert [one.session_id for one in of_project] == [ids[2], ids[0]]
    one_page = search(user_metadata={"mark": mark}, limit=2).result()
    rest_of_it = search(user_metadata={"mark": mark}, limit=2, cursor=one_page.next_cursor).result()
    assert [one.session_id for one in (*one_page.sessions, *rest_of_it.sessions)] == ids[::-1]
    assert rest_of_it.next_cursor is None
    active = search(user_metadata={"mark": mark}, statuses=[{"type": "active"}]).result().sessions
    assert [one.session_id for one in active] == [ids[2], ids[1]]
    rest(server).assign_session_project(ids[1], "elsewhere").result()
    assert search(session_id=ids[1]).result().sessions[0].project_id == "elsewhere"
    assert set(ids) <= set(rest(server).list_sessions(limit=100).result().sessions)


def test_sessions_of_others_are_shown_to_an_admin_alone(server: RunningServer, other: str) -> None:
    client = service(server, other)
    client.get_server_capabilities()
    session_id = client.holder.get_session_id()
    assert rest(server, other).get_session(session_id).result().training_run_ids == []
    with pytest.raises(tinker.NotFoundError):
        rest(server).get_session(session_id).result()
    assert session_id not in rest(server).list_sessions(limit=100).result().sessions
    assert session_id in rest(server).list_sessions(limit=100, access_scope="accessible").result().sessions
    seen = rest(server, other).list_sessions(limit=100, access_scope="accessible").result().sessions
    assert session_id in seen
    mine = service(server)
    mine.get_server_capabilities()
    assert mine.holder.get_session_id() not in seen


def test_a_session_is_exported_as_a_trace(server: RunningServer) -> None:
    client = trainer(server)
    fit(client, 2)
    client.save_weights_and_get_sampling_client().result().sample(prompt(IDS), 1, GREEDY).result()
    session_id = client.model_id.split(":")[0]
    url = rest(server).export_session_trace(session_id).result()
    body = urllib.request.urlopen(url).read()
    for name in (b"forward_backward", b"optim_step", b"save_sampler", b"sample", client.model_id.encode()):
        assert name in body
    with pytest.raises(Exception, match="403"):
        urllib.request.urlopen(url.replace(session_id, str(uuid.uuid4())))


def test_tokens_are_accounted_by_session_and_hour(server: RunningServer, other: str) -> None:
    client = service(server, other).create_lora_training_client("tiny", rank=8).result()
    fit(client, 2)
    sampler = client.save_weights_and_get_sampling_client().result()
    for _ in range(2):
        drawn = sampler.sample(prompt(IDS), 1, GREEDY).result().sequences[0].tokens
    client.save_state("kept").result()
    session_id = client.model_id.split(":")[0]
    amounts = usage_of(server, session_id, 2 * len(drawn))
    assert amounts["training"] == 2 * (len(IDS) - 1)
    assert amounts["sampling_sample"] == 2 * len(drawn)
    assert amounts["sampling_prefill"] + amounts["cached"] == 2 * len(IDS)
    assert amounts["checkpoint"] == 1
    admin = tinker.AdminClient(base_url=server.url, api_key=server.key)
    stored = admin.get_current_checkpoint_storage_usage().result().data
    assert any(one.user_name == "other" and one.checkpoint_count and one.size_bytes for one in stored)
    with pytest.raises(tinker.PermissionDeniedError):
        tinker.AdminClient(base_url=server.url, api_key=other).get_audit_log().result()


def usage_of(server: RunningServer, session_id: str, n_sampled: int) -> dict[str, int]:
    """What this hour and the last hold of a session; samples are written down within some seconds, in parts, so it is
    waited for as many tokens as were drawn."""
    import time

    admin = tinker.AdminClient(base_url=server.url, api_key=server.key)
    hour = datetime.datetime.now(datetime.UTC).replace(minute=0, second=0, microsecond=0)
    window = (hour - datetime.timedelta(hours=1), hour + datetime.timedelta(hours=2))
    for _ in range(100):
        amounts = {"training": 0, "sampling_sample": 0, "sampling_prefill": 0, "cached": 0, "checkpoint": 0}
        for event in admin.get_billing_usage(*window).result().data:
            if event.session_id == session_id:
                info = event.event_info
                name = "cached" if getattr(info, "cached", False) else info.type
                amounts[name] += getattr(info, "token_count", 0) or getattr(info, "count", 0)
        if amounts["sampling_sample"] >= n_sampled:
            break
        time.sleep(0.1)
    return amounts


def test_the_audit_log_says_who_read_and_deleted(server: RunningServer, saved: dict[str, str], other: str) -> None:
    began = datetime.datetime.now(datetime.UTC).date()
    with published(server, saved["state"]):
        service(server, other).create_training_client_from_state(saved["state"]).result()
    of_path = [one for one in audited(server, began, "checkpoints") if one.tinker_path == saved["state"]]
    assert [one.event for one in of_path][-3:] == ["checkpoint_publish", "checkpoint_read", "checkpoint_unpublish"]
    read = of_path[-2]
    assert (read.purpose, read.event_details["key_name"]) == ("training", "other")
    admin = tinker.AdminClient(base_url=server.url, api_key=server.key)
    assert admin.get_audit_log(day=began - datetime.timedelta(days=3)).result().entries == []
    assert admin.get_audit_log("teams").result().entries == []


def audited(server: RunningServer, began: datetime.date, kind: Any = "all") -> list[Any]:
    """Entries of the day on which a test began and, where it has gone over midnight, of the next one."""
    admin = tinker.AdminClient(base_url=server.url, api_key=server.key)
    days = sorted({began, datetime.datetime.now(datetime.UTC).date()})
    return [one for day in days for one in admin.get_audit_log(kind, day=day).result().entries]


def test_the_audit_log_says_who_sampled_by_which_api(server: RunningServer, saved: dict[str, str]) -> None:
    began, key = datetime.datetime.now(datetime.UTC).date(), made_key(server, "--scope", "train")
    body = {"model": saved["weights"], "prompt": "a", "max_tokens": 1}
    with published(server, saved["weights"]):
        said_by(server, key, saved["weights"])
        for _ in range(3):
            headers = {"authorization": f"Bearer {key}"}
            assert httpx.post(f"{server.url}/v1/completions", json=body, headers=headers).status_code == 200
    said_by(server, server.key, saved["weights"])  # to read one's own is no matter
    (key_id,) = [one.event_details["key_id"] for one in audited(server, began, "keys")][-1:]
    reads = [one for one in audited(server, began, "checkpoints") if one.event_details["key_id"] == key_id]
    # One for the sampling client, and one for the three requests.
    assert [(one.event, one.purpose, one.tinker_path) for one in reads] == [
        ("checkpoint_read", "sampling", saved["weights"])
    ] * 2

"""What the SDK does in two ways, each way against a real server: results are the same, and what a way is for holds."""

import asyncio
import json
import pickle
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import tinker

from loreloop.cli.server import RunningServer, running_server
from loreloop.host.completions import Completions, Target
from tests.sdk.clients import GREEDY, IDS, datum, prompt, service

pytestmark = pytest.mark.filterwarnings("ignore")
OPPOSITE = {
    "parallel_fwdbwd_chunks": False,
    "proto_compress_fwdbwd": False,
    "sample_cancel_enabled": False,
    "sample_enable_stuck_detection": False,
    "sample_join_sampling_session": False,
    "sample_no_retries": True,
    "sample_use_retrieve_futures": True,
    "use_pyqwest_transport": False,
}


@contextmanager
def telling(data: Path, tiny_folder: Path, flags: dict[str, bool]) -> Iterator[RunningServer]:
    """A server with these flags in its settings."""
    (data / "models").mkdir()
    (data / "models" / "tiny").symlink_to(tiny_folder)
    settings = data / "server.toml"
    lines = [f"{name} = {json.dumps(value)}" for name, value in flags.items()]
    settings.write_text("\n".join(["[sdk_flags]", *lines]))
    options = ["--config", str(settings), "--model", "tiny", "--precision", "fp32", "--threads", "1"]
    with running_server(str(data), options) as running:
        yield running


@pytest.fixture(scope="module")
def turned(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Iterator[RunningServer]:
    """A server that asks for the other way in everything but keys."""
    with telling(tmp_path_factory.mktemp("turned"), tiny_folder, OPPOSITE) as running:
        yield running


@pytest.fixture(scope="module")
def exchanging(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Iterator[RunningServer]:
    """A server that asks for tokens in the place of keys."""
    with telling(tmp_path_factory.mktemp("tokens"), tiny_folder, {"pjwt_auth_enabled": True}) as running:
        yield running


@pytest.fixture(params=["as usual", "the other way"])
def either(request: pytest.FixtureRequest, server: RunningServer) -> RunningServer:
    return server if request.param == "as usual" else request.getfixturevalue("turned")


def told(server: RunningServer) -> dict[str, bool]:
    headers = {"x-api-key": server.key}
    found: dict[str, bool] = {}
    for place in ("config", "dynamic_config"):
        found |= httpx.post(
            f"{server.url}/api/v1/client/{place}", json={"sdk_version": "0.38.0"}, headers=headers
        ).json()
    return found


def test_flags_of_the_settings_go_over_those_that_are_told_else(server: RunningServer, turned: RunningServer) -> None:
    assert told(server).items() >= {"proto_compress_fwdbwd": True, "sample_cancel_enabled": True}.items()
    assert told(turned).items() >= OPPOSITE.items()


def test_training_in_parts_and_sampling_give_the_same_either_way(server: RunningServer, turned: RunningServer) -> None:
    assert worked(server) == worked(turned)


def worked(server: RunningServer) -> list[object]:
    """A pass in several parts, a step, and samples of a client and of its copy."""
    client = service(server).create_lora_training_client("tiny", rank=8, seed=1).result(60)
    data = [datum(IDS[: 5 + index % 8]) for index in range(1200)]  # more than one request takes
    passed = client.forward_backward(data, "cross_entropy")
    stepped = client.optim_step(tinker.AdamParams(learning_rate=1e-2))
    losses = [round(passed.result(60).metrics["loss:sum"], 2), bool(stepped.result(60))]
    sampler = client.save_weights_and_get_sampling_client().result(60)
    drawn = [sampler.sample(prompt(IDS[:n]), 1, GREEDY) for n in range(3, 20)]
    return [*losses, *(list(each.result(60).sequences[0].tokens) for each in drawn)]


def test_a_copy_of_a_client_samples_beside_it(either: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINKER_API_KEY", either.key)
    monkeypatch.setenv("TINKER_BASE_URL", either.url)
    first = service(either).create_sampling_client(base_model="tiny")
    copies = [pickle.loads(pickle.dumps(first)) for _ in range(2)]
    said = [client.sample(prompt(IDS), 1, GREEDY).result(60).sequences[0].tokens for client in (first, *copies, first)]
    assert len({tuple(tokens) for tokens in said}) == 1


def test_a_sampler_keeps_its_weights_while_training_goes_on(either: RunningServer) -> None:
    client = service(either).create_lora_training_client("tiny", rank=8, seed=1).result(60)
    before = client.save_weights_and_get_sampling_client().result(60)
    said = tuple(before.sample(prompt(IDS), 1, GREEDY).result(60).sequences[0].tokens)
    for _ in range(6):
        client.forward_backward([datum()], "cross_entropy")
        client.optim_step(tinker.AdamParams(learning_rate=3e-2)).result(60)
    assert tuple(before.sample(prompt(IDS), 1, GREEDY).result(60).sequences[0].tokens) == said


def test_a_sample_that_is_given_up_ends_where_the_server_takes_cancels(server: RunningServer) -> None:
    client = service(server).create_sampling_client(base_model="tiny").result(60)
    client.sample(prompt(IDS), 1, GREEDY).result(60)
    waiting = client.sample(prompt(IDS), 32, tinker.SamplingParams(max_tokens=480, stop=[]))
    request_id = f"{client._sampling_session_id}:1"
    until_under_way(server, request_id)
    assert waiting.cancel()
    with pytest.raises((CancelledError, tinker.TinkerError)):
        waiting.result(timeout=20)
    # Its own answer would be tokens; and the client alone would say the same of a sample that goes on.
    assert "The request was cancelled" in polled(server, request_id, 60).text


def polled(server: RunningServer, request_id: str, seconds: float) -> httpx.Response:
    headers, body = {"x-api-key": server.key}, {"request_id": request_id}
    return httpx.post(f"{server.url}/api/v1/retrieve_future", json=body, headers=headers, timeout=seconds)


def until_under_way(server: RunningServer, request_id: str) -> None:
    """Waits until the server has a sample and draws it: a poll of it is held, and one of an unknown id is not."""
    for _ in range(100):
        try:
            answer = polled(server, request_id, 0.1)
        except httpx.ReadTimeout:
            return
        assert answer.status_code == 410, "it has ended before it could be given up"
        time.sleep(0.02)
    raise AssertionError("the sample never came")


def test_who_one_is_can_be_told_by_a_token(exchanging: RunningServer, server: RunningServer) -> None:
    def client(of: RunningServer) -> tinker.RestClient:
        return tinker.RestClient(base_url=of.url, api_key=of.key)

    assert client(exchanging).whoami().result(60).org_urn == "tml:organization:loreloop"
    sampler = service(exchanging).create_sampling_client(base_model="tiny")
    assert sampler.sample(prompt(IDS), 1, GREEDY).result(60).sequences[0].tokens
    with pytest.raises(RuntimeError, match="whoami"):
        client(server).whoami().result(60)


@pytest.mark.parametrize("token", ["eyJ", "eyJ.eyJ.x", "eyJhbGciOiJub25lIn0.e30.", "eyJ" + "a" * 5000])
def test_a_token_of_somebody_elses_making_is_no_key(turned: RunningServer, token: str) -> None:
    answer = httpx.get(f"{turned.url}/api/v1/sessions", headers={"x-api-key": token})
    assert answer.status_code == 401


def test_ends_are_told_once_and_in_order() -> None:
    async def scene() -> None:
        ends, target = Completions(), Target("s:sample:0", 0)
        for number in range(3):
            ends.ended(f"s:sample:0:{number}", failed=number == 1)
        ends.ended("s:sample:0:1000000000", failed=False)  # a copy's
        ends.ended("chatcmpl-1", failed=False)  # another API's
        heard = await ends.since(target, 0, 1)
        assert [(one.request_id[-1], one.failed) for one in heard.completions] == [
            ("0", False),
            ("1", True),
            ("2", False),
        ]
        assert (await ends.since(target, heard.cursor, 0)).completions == []
        later = asyncio.create_task(ends.since(target, heard.cursor, 10))
        await asyncio.sleep(0)
        ends.ended("s:sample:0:7", failed=False)
        assert [one.request_id for one in (await later).completions] == ["s:sample:0:7"]
        assert Completions().last >= heard.cursor  # of a later process
        for request_id in ("s:sample:0:0", "s:sample:0:1", "s:sample:0:2", "s:sample:0:7", "s:sample:0:1000000000"):
            ends.forget(request_id)
        assert not ends.ends

    asyncio.run(scene())

"""Bad input: a clear refusal, no trace, and nothing that waits for a lost sequence id."""

import math

import httpx
import pytest
import tinker

from loreloop.cli.server import RunningServer
from tests.sdk.clients import IDS, datum, fit, prompt, service, trainer

pytestmark = pytest.mark.filterwarnings("ignore")


def with_inputs(**inputs: list[float] | tinker.TensorData) -> tinker.Datum:
    usual = {"target_tokens": IDS[1:], "weights": [1.0] * (len(IDS) - 1)}
    return tinker.Datum(model_input=prompt(IDS[:-1]), loss_fn_inputs=usual | inputs)


BAD_DATA = {
    "ids go from 0": datum([*IDS[:-1], 9999]),
    "ids go from": datum([*IDS[:5], -1, *IDS[5:]]),
    "model_input has 29 tokens": with_inputs(weights=[1.0] * 5),
    "NaN or infinite": with_inputs(weights=[math.nan] * 29),
    "must be finite": with_inputs(weights=[math.inf] * 29),
    "No loss knows mask": with_inputs(mask=tinker.TensorData(data=[1.0] * 29, dtype="float32", shape=[29])),
    "context window": datum(list(range(3, 500)) * 2),
}


@pytest.mark.parametrize("words", BAD_DATA)
def test_bad_data_fail_and_training_goes_on(server: RunningServer, words: str) -> None:
    client = trainer(server)
    with pytest.raises(tinker.RequestFailedError, match=words):
        client.forward_backward([BAD_DATA[words]], "cross_entropy").result()
    assert client.optim_step(tinker.AdamParams()).result().metrics["update_l2:mean"] == 0.0
    losses = fit(client, 2)
    assert losses[1] < losses[0]


@pytest.mark.parametrize(
    ("loss", "config", "words"),
    [("nope", None, "unknown; known are"), ("ppo", {"clip": 1.0}, "no setting clip"), ("ppo", None, "loss inputs")],
)
def test_unknown_losses_and_settings(server: RunningServer, loss: str, config: dict | None, words: str) -> None:
    with pytest.raises(tinker.RequestFailedError, match=words):
        trainer(server).forward_backward([datum()], loss, config).result()


@pytest.mark.parametrize("rank", [0, -1, 100_000])
def test_impossible_ranks(server: RunningServer, rank: int) -> None:
    with pytest.raises(tinker.BadRequestError, match="rank"):
        trainer(server, rank=rank)


def test_an_unknown_model_lists_near_ones(server: RunningServer) -> None:
    with pytest.raises(tinker.NotFoundError, match="Did you mean 'tiny'"):
        service(server).create_lora_training_client("tinny").result()


@pytest.mark.parametrize("name", ["a/b", "..", "", "x" * 200])
def test_checkpoint_names_are_one_component(server: RunningServer, name: str) -> None:
    client = trainer(server)
    with pytest.raises(tinker.BadRequestError, match="name"):
        client.save_state(name).result()
    assert client.save_state("good").result().path.endswith("/weights/good")


def test_a_name_is_taken_once(server: RunningServer) -> None:
    client = trainer(server)
    client.save_state("one").result()
    with pytest.raises(tinker.BadRequestError, match=r"exists already; .*overwrite=True"):
        client.save_state("one").result()
    assert client.save_state("one", overwrite=True).result().path


@pytest.mark.parametrize(
    ("ids", "params", "words"),
    [
        ([], {}, "empty"),
        ([99999], {}, "ids go from 0"),
        (IDS, {"max_tokens": 10_000}, "context window"),
        (IDS, {"temperature": -1.0}, "temperature"),
        (IDS, {"top_p": 1.5}, "top_p"),
        (IDS, {"stop": [""]}, "empty string"),
    ],
)
def test_bad_samples(server: RunningServer, ids: list[int], params: dict, words: str) -> None:
    sampler = service(server).create_sampling_client(base_model="tiny").result()
    with pytest.raises(tinker.BadRequestError, match=words):
        sampler.sample(prompt(ids), 1, tinker.SamplingParams(**params)).result()


def test_a_wrong_key_is_told_so(server: RunningServer) -> None:
    with pytest.raises(tinker.AuthenticationError, match="not one of this server"):
        service(server, "tml-nobody").create_lora_training_client("tiny").result()


@pytest.mark.parametrize(
    ("body", "headers", "status", "words"),
    [
        (b"\x0a\x05hello\x10\x01\x1a\xff", {}, 400, "protobuf"),
        (b"\xff" * 100, {}, 400, "protobuf"),
        (b"not zstd", {"content-encoding": "zstd"}, 400, "zstd"),
        (b"x", {"content-encoding": "br"}, 400, "encoding"),
    ],
)
def test_hostile_bodies(server: RunningServer, body: bytes, headers: dict, status: int, words: str) -> None:
    url = f"{server.url}/api/v1/forward_backward"
    answer = httpx.post(url, content=body, headers={"x-api-key": server.key} | headers)
    assert answer.status_code == status
    assert words in answer.json()["detail"]


def test_a_zstd_bomb_is_stopped(server: RunningServer) -> None:
    import zstandard

    bomb = zstandard.compress(b"\0" * (1 << 28))
    headers = {"x-api-key": server.key, "content-encoding": "zstd"}
    answer = httpx.post(f"{server.url}/api/v1/forward_backward", content=bomb, headers=headers)
    assert answer.status_code == 413


def test_a_truncated_body_does_not_hold_up_what_follows(server: RunningServer) -> None:
    client = trainer(server)
    model_id = client.model_id.encode()
    body = b"\x0a" + bytes([len(model_id)]) + model_id + b"\x10\x01" + b"\x1a\xff\xff"
    answer = httpx.post(f"{server.url}/api/v1/forward_backward", content=body, headers={"x-api-key": server.key})
    assert answer.status_code == 400
    step = {"model_id": client.model_id, "seq_id": 2, "adam_params": {}}
    accepted = httpx.post(f"{server.url}/api/v1/optim_step", json=step, headers={"x-api-key": server.key}).json()
    result = httpx.post(f"{server.url}/api/v1/retrieve_future", json=accepted, headers={"x-api-key": server.key})
    assert "metrics" in result.json()

"""Images through the unmodified SDK against a real server: trained on, sampled after, refused."""

import base64
import re

import httpx
import numpy as np
import pytest
import tinker
import torch

from loreloop.cli.server import RunningServer
from tests.engine.vision_rig import VisionReference, image, text
from tests.images.test_image_files import BAD
from tests.tiny_vision import picture

# The SDK leaves its own background tasks to the garbage collector.
CAT, DOG = picture(70, 40, seed=1), picture(64, 96, seed=2)
N_CAT, N_DOG = 2, 6


def ids(*tokens: int) -> tinker.EncodedTextChunk:
    return tinker.EncodedTextChunk(tokens=list(tokens))


def shown(data: bytes, **fields) -> tinker.types.ImageChunk:
    return tinker.types.ImageChunk(data=data, format="png", **fields)


def datum(*chunks, n_tokens: int, answer: int = 40) -> tinker.Datum:
    """To say `answer` after all of it."""
    weights = [0.0] * (n_tokens - 1) + [1.0]
    inputs = {"target_tokens": [answer] * n_tokens, "weights": weights}
    return tinker.Datum(model_input=tinker.ModelInput(chunks=list(chunks)), loss_fn_inputs=inputs)


@pytest.fixture(scope="module")
def service(seeing: RunningServer) -> tinker.ServiceClient:
    return tinker.ServiceClient(base_url=seeing.url, api_key=seeing.key)


@pytest.fixture(scope="module")
def reference(seeing: RunningServer) -> VisionReference:
    return VisionReference(seeing.data / "models" / "eyes")


def test_images_are_told_apart_after_some_steps(service, reference):
    client = service.create_lora_training_client("eyes", rank=8, seed=1).result()
    question = (ids(11, 12), ids(13))
    data = [
        datum(question[0], shown(CAT, expected_tokens=N_CAT), question[1], n_tokens=3 + N_CAT, answer=41),
        datum(question[0], shown(DOG), question[1], n_tokens=3 + N_DOG, answer=42),
    ]
    first = client.forward_backward(data, "cross_entropy").result()
    logits = reference.logits((text(11, 12), image(DOG), text(13)))
    own = first.loss_fn_outputs[1]["logprobs"].to_numpy()
    assert np.abs(own - logits.log_softmax(-1)[:, 42].detach().numpy()).max() <= 1e-4
    for _ in range(25):
        client.optim_step(tinker.AdamParams(learning_rate=1e-2)).result()
        last = client.forward_backward(data, "cross_entropy").result()
    assert last.metrics["loss:sum"] < 0.1 < first.metrics["loss:sum"]
    sampler = client.save_weights_and_get_sampling_client().result()
    greedy = tinker.SamplingParams(max_tokens=1, temperature=0.0, stop=[])
    for picture_, answer in ((CAT, 41), (DOG, 42)):
        prompt = tinker.ModelInput(chunks=[question[0], shown(picture_), question[1]])
        assert sampler.sample(prompt, 1, greedy).result().sequences[0].tokens == [answer]


def test_samples_and_prompt_logprobs_equal_transformers(service, reference):
    sampler = service.create_sampling_client(base_model="eyes").result()
    prompt = tinker.ModelInput(chunks=[ids(11, 12), shown(DOG), ids(13, 14)])
    params = tinker.SamplingParams(max_tokens=5, seed=1, stop=[])
    answer = sampler.sample(prompt, 2, params, include_prompt_logprobs=True).result()
    assert len(answer.prompt_logprobs) == 4 + N_DOG
    for sequence in answer.sequences:
        logits = reference.logits((text(11, 12), image(DOG), text(13, 14), text(*sequence.tokens)))
        logp = logits.log_softmax(-1)[-6:-1].gather(1, torch.tensor(sequence.tokens)[:, None])[:, 0]
        assert np.abs(logp.detach().numpy() - sequence.logprobs).max() <= 1e-4
    expected = logits.log_softmax(-1)
    assert abs(answer.prompt_logprobs[-1] - expected[-7, 14].item()) <= 1e-4
    assert answer.prompt_logprobs[4] is None or np.isnan(answer.prompt_logprobs[4])


@pytest.mark.parametrize("name", [name for name in BAD if name != "a comment that is a bomb"])
def test_bad_images_are_refused(seeing, name):
    chunk, words = BAD[name]
    size = {"width": chunk.width, "height": chunk.height} if chunk.width is not None else None
    sent = {"type": "image", "format": chunk.format, "expected_tokens": chunk.expected_tokens}
    sent |= {"data": base64.b64encode(chunk.data).decode(), "override_dimensions": size}
    reply = httpx.post(
        f"{seeing.url}/api/v1/asample",
        json={"sampling_session_id": sampler_id(seeing), "seq_id": 0, "prompt": {"chunks": [sent]}}
        | {"sampling_params": {"max_tokens": 1}},
        headers={"x-api-key": seeing.key},
    )
    assert reply.status_code == 400, reply.text
    assert re.search(words, reply.json()["detail"])


def sampler_id(seeing: RunningServer) -> str:
    def post(path: str, body: dict) -> dict:
        headers = {"x-api-key": seeing.key}
        return httpx.post(f"{seeing.url}/api/v1/{path}", json=body, headers=headers).json()

    session = post("create_session", {"tags": [], "type": "create_session"})["session_id"]
    body = {"session_id": session, "sampling_session_seq_id": 0, "base_model": "eyes"}
    return post("create_sampling_session", body)["sampling_session_id"]


def test_a_refused_batch_uses_its_place_up(service):
    client = service.create_lora_training_client("eyes", rank=4, seed=1).result()
    good = datum(ids(11), shown(CAT), n_tokens=1 + N_CAT)
    for bad in (
        datum(ids(11), shown(CAT[:200]), n_tokens=3),
        datum(ids(11), shown(CAT, expected_tokens=9), n_tokens=10),
        datum(ids(11), tinker.types.DmelChunk(dmel=b"x"), n_tokens=3),
        datum(ids(11), shown(CAT), n_tokens=9),
    ):
        with pytest.raises(tinker.TinkerError, match="Datum 1"):
            client.forward_backward([good, bad], "cross_entropy").result()
    assert client.optim_step(tinker.AdamParams()).result().metrics["update_l2:mean"] == 0.0
    assert client.forward_backward([good], "cross_entropy").result().metrics["loss:sum"] > 0


def test_a_model_that_reads_text_only_says_so(service):
    prompt = tinker.ModelInput(chunks=[shown(CAT)])
    with pytest.raises(tinker.BadRequestError, match="takes text only"):
        service.create_sampling_client(base_model="blind").result().sample(prompt, 1, tinker.SamplingParams()).result()
    client = service.create_lora_training_client("blind", rank=4).result()
    with pytest.raises(tinker.TinkerError, match="takes text only"):
        client.forward_backward([datum(shown(CAT), n_tokens=2)], "cross_entropy").result()

"""Sampling through the real SDK against a real server process."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
import tinker
from transformers import AutoTokenizer

from loreloop.cli.server import RunningServer
from tests.sdk.clients import GREEDY, IDS, fit, prompt, service, trainer

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def base(server: RunningServer) -> tinker.SamplingClient:
    return service(server).create_sampling_client(base_model="tiny").result()


def test_seeds_decide_and_samples_differ(base: tinker.SamplingClient) -> None:
    params = tinker.SamplingParams(max_tokens=12, seed=7, stop=[])
    first, again = (base.sample(prompt(IDS), 3, params).result() for _ in range(2))
    drawn = [list(s.tokens) for s in first.sequences]
    assert drawn == [list(s.tokens) for s in again.sequences]
    assert len({tuple(tokens) for tokens in drawn}) == 3


def test_prompt_logprobs_begin_with_nothing(base: tinker.SamplingClient) -> None:
    logprobs = base.compute_logprobs(prompt(IDS)).result()
    assert logprobs[0] is None
    assert len(logprobs) == len(IDS)
    assert all(value < 0 for value in logprobs[1:])


def test_sampled_logprobs_are_those_of_the_scaled_distribution(base: tinker.SamplingClient) -> None:
    params = tinker.SamplingParams(max_tokens=1, temperature=0.5, seed=1, stop=[])
    sequence = base.sample(prompt(IDS), 1, params, topk_sample_logprobs=500).result().sequences[0]
    assert sequence.logprobs[0] <= 0
    greedy = base.sample(prompt(IDS), 1, GREEDY).result().sequences[0]
    again = base.compute_logprobs(prompt([*IDS, *greedy.tokens])).result()
    np.testing.assert_allclose(again[len(IDS) :], greedy.logprobs, atol=1e-4)


def test_stop_ids_and_strings_end_a_sample_and_are_included(server: RunningServer, tiny_folder: Path) -> None:
    client = trainer(server)
    fit(client, 6)
    sampler = client.save_weights_and_get_sampling_client().result()
    stopped = sampler.sample(prompt(IDS[:3]), 1, tinker.SamplingParams(max_tokens=9, temperature=0.0, stop=[17]))
    assert list(stopped.result().sequences[0].tokens) == IDS[3:8]
    assert stopped.result().sequences[0].stop_reason == "stop"
    text = AutoTokenizer.from_pretrained(tiny_folder).decode(IDS[5:7])
    params = tinker.SamplingParams(max_tokens=9, temperature=0.0, stop=text)
    assert list(sampler.sample(prompt(IDS[:3]), 1, params).result().sequences[0].tokens) == IDS[3:7]


def test_two_thousand_samples_in_flight(server: RunningServer, base: tinker.SamplingClient) -> None:
    async def all_of_them() -> list[tinker.SampleResponse]:
        params = [tinker.SamplingParams(max_tokens=1 + i % 3, seed=i, stop=[]) for i in range(2000)]
        return await asyncio.gather(*(base.sample_async(prompt(IDS[: 2 + i % 20]), 1, p) for i, p in enumerate(params)))

    answers = asyncio.run(all_of_them())
    assert [len(a.sequences[0].tokens) for a in answers] == [1 + i % 3 for i in range(2000)]


def test_sampling_goes_on_while_a_model_trains(server: RunningServer, base: tinker.SamplingClient) -> None:
    pending = [base.sample(prompt(IDS), 1, tinker.SamplingParams(max_tokens=40, seed=i, stop=[])) for i in range(8)]
    losses = fit(trainer(server), 4)
    assert losses[-1] < losses[0]
    assert all(len(p.result().sequences[0].tokens) == 40 for p in pending)


def test_top_k_targets_and_alternatives_of_a_prompt(base: tinker.SamplingClient) -> None:
    answer = base.sample(
        prompt(IDS),
        1,
        tinker.SamplingParams(max_tokens=1, seed=3),
        include_prompt_logprobs=True,
        topk_prompt_logprobs=3,
        topk_sample_logprobs=2,
    ).result()
    top = answer.topk_prompt_logprobs[5]
    assert len(top) == 3
    assert max(logprob for _, logprob in top) >= answer.prompt_logprobs[5]

"""A model of experts through the real SDK and a real server: it learns, and training follows the sampler's routes."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import tinker

from loreloop.cli.server import RunningServer, running_server
from tests.sdk.clients import GREEDY, IDS, datum, fit, prompt, trainer
from tests.tiny import make_tiny_model

# The SDK leaves its own background tasks to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    data: Path = tmp_path_factory.mktemp("data")
    make_tiny_model(data / "models" / "tiny", "deepseek_v3")
    with running_server(str(data), ["--model", "tiny", "--precision", "fp32", "--threads", "1"]) as running:
        yield running


def test_it_learns_is_sampled_and_tells_how_its_experts_are_used(server: RunningServer) -> None:
    client = trainer(server)
    losses = fit(client, 6)
    assert losses[-1] < 0.2 * losses[0]
    sampler = client.save_weights_and_get_sampling_client().result()
    assert list(sampler.sample(prompt(IDS[:3]), 1, GREEDY).result().sequences[0].tokens) == IDS[3:11]
    metrics = client.forward([datum()], "cross_entropy").result().metrics
    assert 0 < metrics["e_frac_with_tokens:mean"] <= 1
    assert metrics["e_max_violation:max"] >= metrics["e_max_violation:mean"] >= 0
    assert "e_recorded:sum" not in metrics


def test_recorded_routes_are_followed_after_the_weights_have_moved(server: RunningServer) -> None:
    client = trainer(server)
    sampler = client.save_weights_and_get_sampling_client(record_stability_info=True).result()
    sequence = sampler.sample(prompt(IDS[:5]), 1, tinker.SamplingParams(max_tokens=12, stop=[])).result().sequences[0]
    fit(client, 4)
    ids, n_drawn = [*IDS[:5], *sequence.tokens], len(sequence.tokens)
    sampled = {"sequence_id": sequence.sequence_id}
    recorded = datum(ids).with_provenance(
        [
            tinker.types.PromptProvenanceSpan(length=5, **sampled),
            tinker.types.SampledProvenanceSpan(length=n_drawn - 1, **sampled),
        ],
        [
            tinker.types.PromptProvenanceSpan(offset=1, length=4, **sampled),
            tinker.types.SampledProvenanceSpan(length=n_drawn, **sampled),
        ],
    )
    metrics = client.forward_backward([recorded], "cross_entropy").result().metrics
    n_layers, n_each = 2, 3
    assert metrics["e_recorded:sum"] == (len(ids) - 1) * n_layers * n_each
    assert metrics["e_out_of_route:sum"] == 0
    assert metrics["e_router_moved:sum"] > 0
    assert client.optim_step(tinker.AdamParams()).result().metrics["unclipped_grad_l2:mean"] > 0

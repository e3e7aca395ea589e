"""Training through the real SDK against a real server process."""

import numpy as np
import pytest
import tinker

from loreloop.cli.server import RunningServer
from tests.sdk.clients import GREEDY, IDS, datum, fit, prompt, service, trainer

# The SDK leaves its own background tasks to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore")


def test_a_model_learns_and_is_sampled(server: RunningServer) -> None:
    client = trainer(server)
    losses = fit(client, 6)
    assert losses[-1] < 0.2 * losses[0]
    sampler = client.save_weights_and_get_sampling_client().result()
    tokens = sampler.sample(prompt(IDS[:3]), 1, GREEDY).result().sequences[0].tokens
    assert list(tokens) == IDS[3:11]


def test_a_fresh_model_is_the_base(server: RunningServer) -> None:
    fresh = trainer(server).save_weights_and_get_sampling_client().result()
    base = service(server).create_sampling_client(base_model="tiny").result()
    ours, theirs = (c.compute_logprobs(prompt(IDS)).result() for c in (fresh, base))
    np.testing.assert_allclose(ours[1:], theirs[1:], atol=1e-5)


def test_forward_leaves_gradients_alone(server: RunningServer) -> None:
    client = trainer(server)
    client.forward([datum()], "cross_entropy").result()
    metrics = client.optim_step(tinker.AdamParams()).result().metrics
    assert metrics is not None
    assert metrics["update_l2:mean"] == 0.0


def test_gradients_add_up_over_passes_and_chunks(server: RunningServer) -> None:
    whole, parts = trainer(server), trainer(server)
    data = [datum(IDS[i : i + 12]) for i in range(6)]
    whole.forward_backward(data, "cross_entropy").result()
    for one in data:
        parts.forward_backward([one], "cross_entropy").result()
    norms = [c.optim_step(tinker.AdamParams()).result().metrics["unclipped_grad_l2:mean"] for c in (whole, parts)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_a_custom_loss_runs_on_the_client(server: RunningServer) -> None:
    client = trainer(server)

    def loss(data, logprobs):
        total = sum((row**2).sum() for row in logprobs)
        return total, {"mine": 1.0}

    result = client.forward_backward_custom([datum()], loss).result()
    assert result.metrics["loss:sum"] > 0
    assert client.optim_step(tinker.AdamParams()).result().metrics["unclipped_grad_l2:mean"] > 0


def test_snapshots_stay_as_they_were(server: RunningServer) -> None:
    client = trainer(server)
    before = client.save_weights_and_get_sampling_client().result()
    first = before.compute_logprobs(prompt(IDS)).result()
    fit(client, 3)
    after = client.save_weights_and_get_sampling_client().result()
    assert before.compute_logprobs(prompt(IDS)).result() == first
    assert after.compute_logprobs(prompt(IDS)).result() != first


def test_a_checkpoint_goes_on_where_it_was_saved(server: RunningServer) -> None:
    client = trainer(server)
    fit(client, 2)
    path = client.save_state("half").result().path
    ours = fit(client, 3)
    again = service(server).create_training_client_from_state_with_optimizer(path).result()
    assert fit(again, 3) == pytest.approx(ours, rel=1e-4)


def test_loading_into_a_live_model(server: RunningServer) -> None:
    client = trainer(server)
    path = client.save_state("fresh").result().path
    losses = fit(client, 3)
    client.load_state_with_optimizer(path).result()
    assert fit(client, 1)[0] == pytest.approx(losses[0], rel=1e-5)


def test_many_models_of_different_ranks_do_not_disturb_one_another(server: RunningServer) -> None:
    alone = fit(trainer(server, rank=4), 3)
    clients = [trainer(server, rank=rank) for rank in (4, 8, 16, 2)]
    together = [fit(client, 3) for client in clients]
    assert together[0] == pytest.approx(alone, rel=1e-4)


@pytest.mark.parametrize("loss", ["importance_sampling", "ppo", "cispo", "dro", "stable_reinforce"])
def test_policy_losses_return_logprobs(server: RunningServer, loss: str) -> None:
    client = trainer(server)
    n = len(IDS) - 1
    inputs = {"target_tokens": IDS[1:], "logprobs": [-1.0] * n, "advantages": [1.0] * n}
    data = [tinker.Datum(model_input=prompt(IDS[:-1]), loss_fn_inputs=inputs)]
    result = client.forward_backward(data, loss).result()
    assert result.loss_fn_outputs[0]["logprobs"].to_numpy().shape == (n,)
    assert np.isfinite(result.metrics["loss:sum"])


def test_runs_and_checkpoints_are_listed_and_deleted(server: RunningServer) -> None:
    client = trainer(server)
    path = client.save_state("gone", ttl_seconds=3600).result().path
    rest = tinker.RestClient(base_url=server.url, api_key=server.key)
    run_id = client.model_id
    assert rest.get_training_run(run_id).result().lora_rank == 8
    listed = rest.list_checkpoints(run_id).result().checkpoints
    assert [c.checkpoint_id for c in listed] == ["weights/gone"]
    assert listed[0].expires_at is not None
    rest.delete_checkpoint_from_tinker_path(path).result()
    assert rest.list_checkpoints(run_id).result().checkpoints == []

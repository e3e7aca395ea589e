"""The shared loop against a real server: it learns, ends when asked, and goes on where it was."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tinker
import torch

from loreloop.cli.server import RunningServer, running_server
from loreloop.learn.clients import Clients
from loreloop.learn.rendering import Renderer, renderer_of
from loreloop.learn.runner import Run, StepRecord
from loreloop.protocol.errors import BadRequest
from tests.learn.runs import Kept, examples, plan, run_of, saved_under, service, sft_of

# The SDK leaves its own background tasks to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def renderer(tiny_folder: Path) -> Renderer:
    return renderer_of(tiny_folder)


@pytest.fixture
def sft(renderer: Renderer):
    return sft_of(renderer)


def logprobs(server: RunningServer, path: str) -> np.ndarray:
    sampler = service(server).create_sampling_client(path)
    return np.array(sampler.compute_logprobs(tinker.ModelInput.from_ints(list(range(10, 40)))).result()[1:])


def test_a_run_learns_and_tells_what_it_measured(server: RunningServer, sft) -> None:
    kept = Kept()
    ran = run_of(server, sft, plan(epochs=3), examples(7), kept=kept, held_out=examples(2))
    assert ran.ending == "finished"
    assert [record.step for record in ran.records] == list(range(1, 10))
    assert [record.epoch for record in ran.records] == [1] * 3 + [2] * 3 + [3] * 3
    losses = [record.metrics["train_loss"] for record in ran.records]
    assert losses[-1] < 0.5 * losses[0]
    assert ["valid_loss" in record.metrics for record in ran.records] == [False, False, True] * 3
    assert all(0 < record.metrics["train_mean_token_accuracy"] <= 1 for record in ran.records)
    assert kept.position is not None
    assert [c.epoch for c in kept.position.checkpoints] == [1, 2, 3]
    assert kept.position.finished


def test_a_run_goes_on_where_it_was(server: RunningServer, sft) -> None:
    whole, parted = Kept(), Kept()
    made = plan(epochs=2, save_every=2)
    all_at_once = run_of(server, sft, made, examples(9), kept=whole)
    asked = iter(["go"] * 4 + ["pause"])
    first = run_of(server, sft, made, examples(9), kept=parted, wish=lambda: next(asked))
    assert first.ending == "paused"
    assert parted.position is not None
    assert parted.position.step == 4
    rest = run_of(server, sft, made, examples(9), kept=parted)
    assert [record.step for record in first.records + rest.records] == list(range(1, 7))
    both = first.records + rest.records
    for ours, theirs in zip(all_at_once.records, both, strict=True):
        assert ours.metrics["train_loss"] == pytest.approx(theirs.metrics["train_loss"], rel=1e-4)
    paths = [kept.position.checkpoints[-1].path for kept in (whole, parted) if kept.position]
    np.testing.assert_allclose(*(logprobs(server, path) for path in paths), atol=1e-4)


def test_a_cancelled_run_ends_at_once(server: RunningServer, sft) -> None:
    asked = iter(["go", "go", "cancel"])
    kept = Kept()
    ran = run_of(server, sft, plan(epochs=5, save_every=1), examples(9), kept=kept, wish=lambda: next(asked))
    assert (ran.ending, len(ran.records)) == ("cancelled", 2)
    assert kept.position is not None
    assert kept.position.step == 2


def test_what_comes_after_the_last_state_is_repeated_and_no_more(server: RunningServer, sft) -> None:
    class Dies(Exception):
        pass

    def dying() -> str:
        nonlocal left
        left -= 1
        if left < 0:
            raise Dies
        return "go"

    left, kept, made = 5, Kept(), plan(epochs=2, save_every=2)
    with pytest.raises(Dies):
        run_of(server, sft, made, examples(9), kept=kept, wish=dying)
    assert kept.position is not None
    assert kept.position.step == 4  # the third step ended an epoch; the fourth was saved by the interval
    rest = run_of(server, sft, made, examples(9), kept=kept)
    assert [record.step for record in rest.records] == [5, 6]


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Iterator[RunningServer]:
    data = tmp_path_factory.mktemp("exact")
    (data / "models").mkdir()
    (data / "models" / "tiny").symlink_to(tiny_folder)
    with running_server(str(data), ["--model", "tiny", "--deterministic", "--threads", "1"]) as running:
        yield running


def test_its_weights_are_those_of_a_plain_loop_bit_for_bit(exact: RunningServer, sft, renderer: Renderer) -> None:
    made, data, kept = plan(epochs=2, save_every=2, schedule="cosine"), examples(8), Kept()
    run_of(exact, sft, made, data, kept=kept)
    client = service(exact).create_lora_training_client("tiny", rank=8, seed=1).result()
    n_steps = made.n_steps(len(data))
    for step in range(n_steps):
        batch = [datum for example in made.batch(step, data) for datum in renderer.demonstrations(example)]
        passed = client.forward_backward(batch, "cross_entropy")
        stepped = client.optim_step(
            tinker.AdamParams(learning_rate=made.rate(step, n_steps), beta1=0.9, beta2=0.95, eps=1e-8)
        )
        passed.result(), stepped.result()
    plain = client.save_state("plain").result().path
    assert kept.position is not None
    ours, theirs = saved_under(exact, kept.position.states["policy"]), saved_under(exact, plain)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert any(tensor.any() for name, tensor in ours.items() if "lora_B" in name)


class Diverging:
    """A learner whose loss is lost at its second step, and which has a measure without a value before."""

    ahead = 0

    def prepare(self, batch, at) -> None: ...

    async def step(self, batch, at):
        async def metrics() -> dict[str, float]:
            return {"train_loss": float("nan") if at.step else 1.0, "train_margin": float("nan")}

        return metrics()

    async def evaluate(self, examples) -> dict[str, float]:
        return {}

    def state(self) -> dict[str, object]:
        return {}

    def restore(self, state) -> None: ...


def test_a_loss_that_is_no_number_ends_the_run(server: RunningServer) -> None:
    told: list[StepRecord] = []

    async def run() -> None:
        with service(server) as here:
            clients = Clients(here, plan())
            await clients.training()
            await Run(plan=plan(), clients=clients, learner=Diverging(), progress=Kept(), tell=told.append).over(
                examples(9)
            )

    with pytest.raises(BadRequest, match="Step 2: train_loss is nan; the learning rate of"):
        asyncio.run(run())
    assert [record.metrics for record in told] == [{"train_loss": 1.0}]

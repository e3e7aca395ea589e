"""DPO and KTO: their slopes are those of autograd, and their passes those of the SDK's own custom losses."""

import asyncio
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinker
import torch
from hypothesis import given
from hypothesis import strategies as st

from loreloop.cli.server import RunningServer
from loreloop.learn.clients import Clients
from loreloop.learn.examples import Mark, Preference
from loreloop.learn.learners.dpo import Dpo, dpo_loss
from loreloop.learn.learners.kto import Kto, Weights, kto_loss, weights_of
from loreloop.learn.learners.surrogate import logprobs_of, surrogate
from loreloop.learn.plan import Plan
from loreloop.learn.rendering import Renderer, renderer_of
from loreloop.learn.settings import DpoSettings, KtoSettings
from loreloop.text.conversation import Conversation, Turn
from tests.learn.runs import Kept, examples, plan, run_of, said, saved_under, service, sft_of
from tests.sdk.clients import fit

# The SDK leaves its own background tasks to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore")

SGD = tinker.AdamParams(learning_rate=1e5, beta1=0.0, beta2=0.0, eps=1e5)  # so steps are nearly the gradients
REWARDS = st.lists(st.floats(-30, 30), min_size=1, max_size=5)


@pytest.fixture(scope="module")
def renderer(tiny_folder: Path) -> Renderer:
    return renderer_of(tiny_folder)


def answer(text: str) -> Conversation:
    return Conversation((Turn("assistant", text),))


def pairs(n: int) -> list[Preference]:
    return [Preference(said(f"what is {k}?"), answer(f"it is {k}"), answer("the lazy dog")) for k in range(n)]


def marked(n: int) -> list[Mark]:
    return [Mark(said(f"what is {k}?"), answer((f"it is {k}", "the lazy dog")[k % 2]), k % 2 == 0) for k in range(n)]


def torch_dpo(chosen: Any, rejected: Any, beta: float, smoothing: float) -> Any:
    margins = beta * (chosen - rejected)
    sigmoid = torch.nn.functional.logsigmoid
    return (-(1 - smoothing) * sigmoid(margins) - smoothing * sigmoid(-margins)).mean()


def torch_kto(own: Any, others: Any, wanted: Sequence[bool], beta: float, weights: Weights) -> Any:
    z = torch.clamp(others.mean(), min=0).detach() if len(others) else 0.0
    losses = [
        weights.wanted * (1 - torch.sigmoid(beta * (r - z)))
        if good
        else weights.unwanted * (1 - torch.sigmoid(beta * (z - r)))
        for r, good in zip(own, wanted, strict=True)
    ]
    return torch.stack(losses).mean()


@given(REWARDS, st.sampled_from([0.1, 1.0]), st.sampled_from([0.0, 0.2]))
def test_the_slopes_of_dpo_are_those_of_autograd(chosen: list[float], beta: float, smoothing: float) -> None:
    relative = np.array([*chosen, *chosen[::-1]])
    judged = dpo_loss(relative, beta, smoothing)
    leaf = torch.tensor(relative, requires_grad=True)
    loss = torch_dpo(*leaf.chunk(2), beta, smoothing)
    loss.backward()
    assert judged.metrics["loss"] == pytest.approx(loss.item(), abs=1e-9)
    np.testing.assert_allclose(judged.slopes, leaf.grad.numpy(), atol=1e-9)


@given(REWARDS, REWARDS, st.data())
def test_the_slopes_of_kto_are_those_of_autograd(own: list[float], others: list[float], data: st.DataObject) -> None:
    wanted = data.draw(st.lists(st.booleans(), min_size=len(own), max_size=len(own)))
    weights = Weights(1.5, 0.75)
    judged = kto_loss(np.array([*own, *others]), np.array(wanted), 0.3, weights)
    leaf = torch.tensor(own, dtype=torch.float64, requires_grad=True)
    loss = torch_kto(leaf, torch.tensor(others, dtype=torch.float64), wanted, 0.3, weights)
    loss.backward()
    assert judged.metrics["loss"] == pytest.approx(loss.item(), abs=1e-9)
    np.testing.assert_allclose(judged.slopes[: len(own)], leaf.grad.numpy(), atol=1e-9)
    assert not judged.slopes[len(own) :].any()


def test_without_weights_both_kinds_count_the_same() -> None:
    found = weights_of(KtoSettings(), [Mark(said("a"), answer("b"), wanted) for wanted in (True, True, True, False)])
    assert found == Weights(1, 3)
    assert weights_of(KtoSettings(wanted_weight=2, unwanted_weight=1), []) == Weights(2, 1)


def saved(server: RunningServer, client: tinker.TrainingClient) -> dict[str, torch.Tensor]:
    found = saved_under(server, client.save_state("now", overwrite=True).result().path)
    return {name: tensor for name, tensor in found.items() if "adapter" in name}


@pytest.mark.parametrize("kind", ["dpo", "kto"])
def test_a_pass_has_the_gradient_of_the_sdks_custom_loss(server: RunningServer, renderer: Renderer, kind: str) -> None:
    """Both take one step of plain descent from the same weights; the steps differ by the gradients alone."""
    steps = {}
    for way in ("ours", "theirs"):
        with service(server) as here:
            client = here.create_lora_training_client("tiny", rank=8, seed=1).result()
            reference = here.create_lora_training_client("tiny", rank=1, seed=1).result()
            fit(client, 2)  # so that both factors of the adapter have gradients, and rewards are none of them 0
            before = saved(server, client)
            learner, batch = (
                (Dpo(DpoSettings(), plan(), client, reference, renderer), pairs(3))
                if kind == "dpo"
                else (Kto(0.1, Weights(1, 2), plan(), client, reference, renderer), marked(3))
            )
            answers = [renderer.going_on(one.prompt, one.answer) for one in learner.posed(batch)]
            relative = asyncio.run(logprobs_of(reference, answers))
            if way == "ours":
                judged = learner.judged(asyncio.run(logprobs_of(client, answers)) - relative, batch)
                client.forward_backward(surrogate(answers, judged.slopes), "cross_entropy").result()
            else:
                client.forward_backward_custom(
                    [datum for (datum,) in answers], functools.partial(custom, kind, relative, batch)
                ).result()
            client.optim_step(SGD).result()
            after = saved(server, client)
            steps[way] = {name: after[name] - before[name] for name in before}
    largest = max(step.abs().max() for step in steps["theirs"].values())
    assert largest > 1e-3
    for name, step in steps["ours"].items():
        torch.testing.assert_close(step, steps["theirs"][name], rtol=1e-5, atol=float(1e-5 * largest), msg=name)


def custom(
    kind: str, reference: np.ndarray, batch: Sequence[Any], data: list[tinker.Datum], rows: list[torch.Tensor]
) -> tuple[torch.Tensor, dict[str, float]]:
    weights = [torch.tensor(datum.loss_fn_inputs["weights"].to_numpy()) for datum in data]
    pairs = zip(rows, weights, reference, strict=True)
    relative = torch.stack([(row * weight).sum() - float(known) for row, weight, known in pairs])
    if kind == "dpo":
        return torch_dpo(*relative.chunk(2), 0.1, 0.0), {}
    wanted = [mark.wanted for mark in batch]
    return torch_kto(relative[: len(batch)], relative[len(batch) :], wanted, 0.1, Weights(1, 2)), {}


async def _dpo(renderer: Renderer, made: Plan, clients: Clients) -> Dpo:
    return await Dpo.of(made, clients, renderer, DpoSettings())


async def _kto(renderer: Renderer, made: Plan, clients: Clients) -> Kto:
    return await Kto.of(made, clients, renderer, KtoSettings(), marked(8))


@pytest.mark.parametrize(("kind", "data"), [(_dpo, pairs(8)), (_kto, marked(8))], ids=["dpo", "kto"])
def test_a_run_raises_its_margin(server: RunningServer, renderer: Renderer, kind: Any, data: list[Any]) -> None:
    kept, made = Kept(), plan(epochs=4, batch_size=4, save_every=3)
    asked = iter(["go"] * 3 + ["pause"])
    make = functools.partial(kind, renderer)
    first = run_of(server, make, made, data, kept=kept, wish=lambda: next(asked))
    rest = run_of(server, make, made, data, kept=kept, held_out=data[:4])
    records = first.records + rest.records
    assert [record.step for record in records] == list(range(1, 9))
    # At the first step the policy is the reference, to the rounding of their passes.
    assert records[0].metrics["train_margin"] == pytest.approx(0, abs=1e-5)
    assert records[-1].metrics["valid_margin"] > 0.1
    assert records[-1].metrics["train_loss"] < records[0].metrics["train_loss"]


def test_a_run_may_begin_from_saved_weights(server: RunningServer, renderer: Renderer) -> None:
    taught = Kept()
    run_of(server, sft_of(renderer), plan(), examples(6), kept=taught)
    assert taught.position is not None
    begun = plan(start=taught.position.states["policy"], steps=1)
    ran = run_of(server, functools.partial(_dpo, renderer), begun, pairs(3))
    # The reference is where this run began, and not the base model.
    assert ran.records[0].metrics["train_margin"] == pytest.approx(0, abs=1e-5)


def test_pairs_of_kto_that_cannot_stand_are_left_out_of_its_estimate(renderer: Renderer) -> None:
    long = "the lazy dog " * 8
    batch = [Mark(said(long), answer("it is"), True), Mark(said("what?"), answer(long), False)]
    longest = max(renderer.going_on(one.prompt, one.answer)[0].model_input.length for one in batch)
    none: Any = None
    learner = Kto(0.1, Weights(1, 1), plan(), none, none, renderer)
    assert len(learner.posed(batch)) == 4
    learner.window = longest
    # The long answer behind the long prompt is longer than each by itself; the short behind the short is not.
    assert [(one.prompt, one.answer) for one in learner.posed(batch)[2:]] == [(batch[1].prompt, batch[0].answer)]


def test_held_out_measures_are_means_over_the_batches_that_have_them(server: RunningServer, renderer: Renderer) -> None:
    with service(server) as here:
        client = here.create_lora_training_client("tiny", rank=8, seed=1).result()
        reference = here.create_lora_training_client("tiny", rank=1, seed=1).result()
        fit(client, 2)
        kto = Kto(0.1, Weights(1, 1), plan(batch_size=2), client, reference, renderer)
        mixed = marked(2)
        first = asyncio.run(kto.evaluate(mixed))
        # Two answers of one kind make no margin, and take nothing away from that of the others.
        both = asyncio.run(kto.evaluate([*mixed, mixed[0], mixed[0]]))
    assert abs(first["valid_margin"]) > 1e-3
    assert both["valid_margin"] == pytest.approx(first["valid_margin"], rel=1e-4)

"""The value adapter tells with its step what a pass that only reads would have told before it."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import tinker

from loreloop.cli.server import RunningServer
from loreloop.learn.learners.evidence import Evidence
from loreloop.learn.learners.value_adapter import Scale, ValueAdapter
from tests.learn.rollout_rig import rollout, sampled
from tests.learn.runs import service

# The SDK leaves its own background tasks to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore")

SCALE = Scale(tuple(range(20, 30)), -1.0, 2.0)


def test_values_come_with_the_step_and_are_of_before_it(server: RunningServer) -> None:
    async def scene() -> None:
        with service(server) as client:
            policy = await client.create_lora_training_client("tiny", rank=4)
            adapter = ValueAdapter(await client.create_lora_training_client("tiny", rank=4), SCALE, learning_rate=0.05)
            evidence = Evidence(policy, values=adapter)
            rollouts = [rollout(sampled(40, 41, 42)), rollout(sampled(50, 51))]
            ones = lambda traces: [np.ones(len(trace.targets)) for trace in traces]  # noqa: E731
            away = []
            for _ in range(6):
                read = await _read(
                    adapter, [one.trace for one in (await evidence.scored(rollouts, frozenset())).scored]
                )
                asked = await evidence.scored(rollouts, frozenset({"values"}), ones)
                found = [one.known("values") for one in asked.scored]
                for told, by_reading in zip(found, read, strict=True):
                    np.testing.assert_allclose(told, by_reading, atol=1e-5)
                assert asked.value_step is not None
                assert np.isfinite(await asked.value_step.loss())
                said = [one.known("values")[one.trace.learned] for one in asked.scored]
                away.append(float(abs(np.concatenate(said) - 1.0).mean()))
            # Learned towards 1 wherever a token was said.
            assert away[-1] < 0.5 * away[0]
            assert (await evidence.scored([], frozenset({"values"}), ones)).value_step is None
            with pytest.raises(ValueError, match="needs a value adapter and its targets"):
                await evidence.scored(rollouts, frozenset({"values"}))

    asyncio.run(scene())


async def _read(adapter: ValueAdapter, traces) -> list[np.ndarray]:
    blank = []
    for trace in traces:
        tokens = np.tile(np.array(SCALE.tokens, np.int64), (len(trace.targets), 1))
        inputs = {"target_tokens": tokens, "weights": np.zeros(tokens.shape, np.float32)}
        tensors = {name: tinker.TensorData.from_numpy(values) for name, values in inputs.items()}
        blank.append(tinker.Datum(model_input=trace.model_input, loss_fn_inputs=tensors))
    result = await adapter.client.forward(blank, "cross_entropy")
    return [SCALE.read(np.asarray(out["logprobs"].to_numpy(), np.float64)) for out in result.loss_fn_outputs]

"""Engine processes are killed at any moment; clients of the dispatcher do not notice."""

import asyncio
import random

import numpy as np
import pytest

from loreloop.engine.fake import drawn_token
from loreloop.protocol.link import Token
from loreloop.protocol.sampling import SampleResult
from loreloop.protocol.training import Failure, OpResult, TrainOp
from tests.host.office import Office, end, office
from tests.scheduler.ops import create, forward_backward, sample, step

N_RUNS, N_ROUNDS = 3, 8


def operations(office: Office) -> list[TrainOp]:
    ops: list[TrainOp] = []
    for number in range(N_RUNS):
        run = office.run(number)
        ops.append(create(run, seed=number))
        for at in range(N_ROUNDS):
            ops += [forward_backward(run, 3 * at + 1), forward_backward(run, 3 * at + 2), step(run, 3 * at + 3)]
    return ops


async def trained(office: Office, ops: list[TrainOp]) -> dict[str, OpResult]:
    """All results, by the place of the operation (ids differ from office to office)."""
    outcomes = await asyncio.gather(*(office.result(op, 30) for op in ops))
    return {op.request_id.split(":train:")[1]: outcome.result for op, outcome in zip(ops, outcomes, strict=True)}


async def undisturbed() -> dict[str, OpResult]:
    async with office() as place:
        engine = await place.start_engine()
        ops = operations(place)
        await place.submit(*ops)
        results = await trained(place, ops)
        await end(engine)
    return results


async def disturbed(dice: random.Random) -> dict[str, OpResult]:
    """Operations arrive out of order; engine after engine is killed soon after one of them has ended."""
    async with office() as place:
        ops = operations(place)
        engine = await place.start_engine(layer_seconds=0.01)
        await place.dispatcher.info("fake")
        for op in dice.sample(ops, len(ops)):
            await place.submit(op)
        for op in ops[4 : len(ops) // N_RUNS : 4]:
            await place.result(op)
            await asyncio.sleep(dice.uniform(0, 0.05))
            await end(engine)
            engine = await place.start_engine(layer_seconds=0.01)
        results = await trained(place, ops)
        await end(engine)
        return results


def test_killed_engines_change_no_result() -> None:
    calm = asyncio.run(undisturbed())
    stormy = asyncio.run(disturbed(random.Random(4)))
    assert not [result for result in calm.values() if isinstance(result, Failure)]
    assert stormy == calm


@pytest.mark.parametrize("seed", [1, 2])
def test_samples_and_streams_survive_killed_engines(seed: int) -> None:
    async def run() -> None:
        dice = random.Random(seed)
        async with office() as place:
            ops = [sample(f"r{i}", f"owner{i % 3}", n=2, max_tokens=60, stream=i % 2 == 0) for i in range(20)]
            for op in ops:
                assert place.dispatcher.sample(op, "fake")
                assert not place.dispatcher.sample(op, "fake")
            streams = [asyncio.create_task(streamed(place, op.request_id)) for op in ops if op.stream]
            for seconds in (dice.uniform(0.5, 0.9), dice.uniform(0.5, 0.9), None):
                engine = await place.start_engine(layer_seconds=0.01)
                if seconds is not None:
                    await asyncio.sleep(seconds)
                else:
                    results = [await place.dispatcher.sample_result(op.request_id, 20) for op in ops]
                await end(engine)
            for op, result in zip(ops, results, strict=True):
                assert isinstance(result, SampleResult)
                for index, sequence in enumerate(result.sequences):
                    expected = [drawn_token(op, index, position) for position in range(60)]
                    assert np.frombuffer(sequence.tokens, "<i4").tolist() == expected
            for tokens in await asyncio.gather(*streams):
                assert tokens == [[drawn_token(ops[0], index, position) for position in range(60)] for index in (0, 1)]

    asyncio.run(run())


async def streamed(place: Office, request_id: str) -> list[list[int]]:
    """The tokens of both samples as a stream showed them, before its result."""
    shown: list[list[int]] = [[], []]
    async for item in place.dispatcher.stream(request_id):
        if isinstance(item, Token):
            shown[item.sample_index].append(item.token)
        else:
            assert isinstance(item, SampleResult)
    return shown

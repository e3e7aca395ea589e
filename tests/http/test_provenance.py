"""Stability records and provenance spans: what was sampled may be trained on, and nothing else passes for it."""

import time
from dataclasses import dataclass

import httpx
import pytest

from loreloop.protocol import wire_pb2 as wire
from loreloop.protocol.training import ForwardBackward
from loreloop.store import replay, spool
from tests.http.site import Site, passing, play, sample, step

N_PROMPT, N_DRAWN = 3, 4  # as `sample` asks


@dataclass(frozen=True)
class Drawn:
    """A model, and a sequence that was sampled in its session."""

    model_id: str
    sequence_id: str


async def drawn(site: Site, **fields: object) -> Drawn:
    session_id = await site.session()
    model_id, sampler = await site.model(session_id), await site.sampler(session_id)
    accepted = await site.ok("/asample", sample(sampler, record_stability_info=True, **fields))
    assert (await site.future(accepted["request_id"])).status_code == 200
    return Drawn(model_id, accepted["sample_sequence_ids"][0])


def span(sequence_id: str, offset: int, length: int, *, sampled: bool) -> wire.ProvenanceSpan:
    at = wire.SequenceSpan(sequence_id=sequence_id, offset=offset, length=length)
    return wire.ProvenanceSpan(sampled_tokens=at) if sampled else wire.ProvenanceSpan(prompt_tokens=at)


def shifted(sequence_id: str) -> tuple[list[wire.ProvenanceSpan], list[wire.ProvenanceSpan]]:
    """The spans of a whole sequence: all but the last token is input, all but the first is target."""
    inputs = [span(sequence_id, 0, N_PROMPT, sampled=False), span(sequence_id, 0, N_DRAWN - 1, sampled=True)]
    targets = [span(sequence_id, 1, N_PROMPT - 1, sampled=False), span(sequence_id, 0, N_DRAWN, sampled=True)]
    return inputs, targets


async def trained(
    site: Site, model_id: str, inputs: list[wire.ProvenanceSpan], targets: list[wire.ProvenanceSpan], seq_id: int = 1
) -> httpx.Response:
    request = passing(model_id, seq_id, n=N_PROMPT + N_DRAWN - 1)
    request.data[0].model_input_spans.extend(inputs)
    request.data[0].loss_fn_input_spans.extend(targets)
    return await site.train(request)


def journaled(site: Site, request_id: str) -> ForwardBackward:
    store = site.services.store
    ops = store.read(replay.replay_state, store.segments, "fake").ops
    return next(op for op in ops if op.request_id == request_id and isinstance(op, ForwardBackward))


def test_the_engine_learns_which_targets_were_sampled() -> None:
    async def scene(site: Site) -> None:
        from_sample = await drawn(site)
        answer = await trained(site, from_sample.model_id, *shifted(from_sample.sequence_id))
        op = journaled(site, answer.json()["request_id"])
        assert op.data[0].sampled_spans == ((N_PROMPT - 1, N_PROMPT - 1 + N_DRAWN),)
        assert (await site.future(op.request_id)).status_code == 200

    play(scene)


def test_without_spans_nothing_is_claimed() -> None:
    async def scene(site: Site) -> None:
        answer = await trained(site, await site.model(), [], [])
        assert journaled(site, answer.json()["request_id"]).data[0].sampled_spans is None

    play(scene)


def wrong_spans(name: str, sequence_id: str) -> tuple[list[wire.ProvenanceSpan], list[wire.ProvenanceSpan]]:
    inputs, targets = shifted(sequence_id)
    rest = span(sequence_id, 0, N_DRAWN - 1, sampled=True)
    return {
        "one side": (inputs, []),
        "too short": (inputs[:1], targets),
        "too long": ([*inputs, inputs[0]], targets),
        "past the prompt": ([span(sequence_id, 1, N_PROMPT, sampled=False), rest], targets),
        "past the output": (inputs, [span(sequence_id, 3, N_PROMPT + N_DRAWN - 1, sampled=True)]),
        "before the beginning": ([span(sequence_id, -1, N_PROMPT, sampled=False), rest], targets),
        "backwards": ([*inputs, span(sequence_id, 0, -1, sampled=False), inputs[0]], targets),
    }[name]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("one side", "loss_fn_input_spans cover 0 positions of 6"),
        ("too short", "model_input_spans cover 3 positions of 6"),
        ("too long", "cover 9 positions of 6"),
        ("past the prompt", "which has 3"),
        ("past the output", "which has 4"),
        ("before the beginning", "3 positions from -1"),
        ("backwards", "-1 positions from 0"),
    ],
)
def test_spans_must_lie_inside_and_tile(name: str, words: str) -> None:
    async def scene(site: Site) -> None:
        from_sample = await drawn(site)
        answer = await trained(site, from_sample.model_id, *wrong_spans(name, from_sample.sequence_id))
        assert answer.status_code == 400
        assert words in answer.json()["detail"]
        assert (await site.result("/optim_step", step(from_sample.model_id, 2)))["metrics"]

    play(scene)


@pytest.mark.parametrize("foreign", [True, False])
def test_only_recorded_sequences_of_the_same_session_count(foreign: bool) -> None:
    async def scene(site: Site) -> None:
        theirs = await drawn(site)
        model_id = await site.model()
        answer = await trained(site, model_id, *shifted(theirs.sequence_id if foreign else "nobody:sample:0:0:0"))
        assert answer.status_code == 400
        assert "not recorded for this session" in answer.json()["detail"]
        assert (await site.result("/optim_step", step(model_id, 2)))["metrics"]

    play(scene)


def test_a_sample_that_was_not_to_be_recorded_is_not() -> None:
    async def scene(site: Site) -> None:
        session_id = await site.session()
        accepted = await site.ok("/asample", sample(await site.sampler(session_id)))
        await site.future(accepted["request_id"])
        answer = await trained(site, await site.model(session_id), *shifted(accepted["sample_sequence_ids"][0]))
        assert answer.status_code == 400
        assert "record_stability_info" in answer.json()["detail"]

    play(scene)


def test_training_restarts_the_time_of_a_record() -> None:
    async def scene(site: Site) -> None:
        from_sample = await drawn(site)
        store, sequence_id = site.services.store, from_sample.sequence_id
        await store.write(spool.renew, [sequence_id], time.time() + 1)
        assert (await trained(site, from_sample.model_id, *shifted(sequence_id))).status_code == 200
        await store.write(spool.sweep, time.time() + 3600)
        assert (await trained(site, from_sample.model_id, *shifted(sequence_id), seq_id=2)).status_code == 200
        await store.write(spool.renew, [sequence_id], time.time() - 1)
        assert (await trained(site, from_sample.model_id, *shifted(sequence_id), seq_id=3)).status_code == 400

    play(scene)


def test_a_sample_forgotten_and_asked_for_again_is_recorded_again() -> None:
    async def scene(site: Site) -> None:
        request = sample(await site.sampler(), record_stability_info=True)
        for _ in range(2):
            accepted = await site.ok("/asample", request)
            assert (await site.future(accepted["request_id"])).status_code == 200
            site.services.dispatcher.forget_results(time.time() + 1)

    play(scene)

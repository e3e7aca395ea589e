"""Sampling routes: sessions of samplers, requests, and what is recorded of them."""

import asyncio
import threading

import numpy as np
import pytest
from tinker.proto.response_conv import deserialize_sample_response

from loreloop.engine.contract import SampleEvent
from loreloop.engine.fake import FakeEngine
from loreloop.protocol.sampling import Revision
from tests.http.site import Site, passing, play, sample, save, step


def revision(site: Site, request_id: str) -> Revision | None:
    return site.services.dispatcher.tickets[request_id].op.revision


def test_a_sample_is_answered_with_ids_and_tokens() -> None:
    async def scene(site: Site) -> None:
        sampler = await site.sampler()
        accepted = await site.ok("/asample", sample(sampler, num_samples=3))
        assert len(set(accepted["sample_sequence_ids"])) == 3
        answer = await site.future(accepted["request_id"])
        assert answer.headers["content-type"] == "application/x-protobuf"
        sequences = deserialize_sample_response(answer.content).sequences
        assert [len(s.tokens) for s in sequences] == [4, 4, 4]
        assert len({tuple(s.tokens) for s in sequences}) == 3
        assert {s.stop_reason for s in sequences} == {"length"}

    play(scene)


def test_a_repeated_request_is_the_same_sample() -> None:
    async def scene(site: Site) -> None:
        sampler = await site.sampler()
        request = sample(sampler, params={"seed": None})
        accepted = [await site.ok("/asample", request) for _ in range(2)]
        assert accepted[0] == accepted[1]
        assert len(site.services.dispatcher.tickets) == 1
        answers = [(await site.future(a["request_id"])).content for a in accepted]
        assert answers[0] == answers[1]

    play(scene)


def test_without_a_seed_samples_differ() -> None:
    async def scene(site: Site) -> None:
        sampler = await site.sampler()
        accepted = [await site.ok("/asample", sample(sampler, n, params={"seed": None})) for n in range(2)]
        answers = [deserialize_sample_response((await site.future(a["request_id"])).content) for a in accepted]
        assert list(answers[0].sequences[0].tokens) != list(answers[1].sequences[0].tokens)

    play(scene)


@pytest.mark.parametrize(("stop", "n_tokens", "reason"), [([301], 2, "stop"), (["301"], 2, "stop"), ([], 4, "length")])
def test_stops_are_included_and_said(stop: list[object], n_tokens: int, reason: str) -> None:
    async def scene(site: Site) -> None:
        sampler = await site.sampler()
        plain = await site.future((await site.ok("/asample", sample(sampler, 0)))["request_id"])
        second = int(deserialize_sample_response(plain.content).sequences[0].tokens[1])
        asked = [second if item == 301 else str(second) for item in stop]
        accepted = await site.ok("/asample", sample(sampler, 1, params={"stop": asked}))
        sequence = deserialize_sample_response((await site.future(accepted["request_id"])).content).sequences[0]
        assert (len(sequence.tokens), sequence.stop_reason) == (n_tokens, reason)

    play(scene)


def test_samplers_say_what_they_sample_from() -> None:
    async def scene(site: Site) -> None:
        session_id = await site.session()
        model_id = await site.model(session_id)
        path = (await site.result("/save_weights_for_sampler", save(model_id, 1, "a")))["path"]
        base = await site.sampler(session_id, 0, base_model="org/alias")
        trained = await site.sampler(session_id, 1, model_path=path)
        assert (base, trained) == (f"{session_id}:sample:0", f"{session_id}:sample:1")
        assert (await site.client.get(f"/samplers/{base}")).json() == {"sampler_id": base, "base_model": "org/alias"}
        about = (await site.client.get(f"/samplers/{trained}")).json()
        assert about == {"sampler_id": trained, "base_model": "fake", "model_path": path}
        request_id = (await site.ok("/asample", sample(trained)))["request_id"]
        assert revision(site, request_id).revision_id == path
        assert (await site.future(request_id)).status_code == 200

    play(scene)


@pytest.mark.parametrize(
    ("target", "status_code", "words"),
    [
        ({"base_model": "fakir"}, 404, "Did you mean 'fake'"),
        ({"model_path": "tinker://{run}/weights/a"}, 400, "save_weights_for_sampler"),
        ({"model_path": "tinker://{run}/sampler_weights/none"}, 404, "no checkpoint"),
        ({"model_path": "org/alias;tinker://{run}/sampler_weights/a"}, 200, ""),
        ({"model_path": "other;tinker://{run}/sampler_weights/a"}, 404, "'other' is not served"),
        ({"base_model": "fake:peft:262144"}, 200, ""),
        ({}, 400, "Name a base_model or a model_path"),
    ],
)
def test_names_mean_bases_aliases_or_checkpoints(target: dict[str, str], status_code: int, words: str) -> None:
    async def scene(site: Site) -> None:
        session_id = await site.session()
        model_id = await site.model(session_id)
        await site.result("/save_weights_for_sampler", save(model_id, 1, "a"))
        filled = {key: value.format(run=model_id) for key, value in target.items()}
        body = {"session_id": session_id, "sampling_session_seq_id": 0} | filled
        answer = await site.post("/create_sampling_session", body)
        assert answer.status_code == status_code
        assert words in answer.text

    play(scene)


def test_snapshots_stay_and_inflight_samplers_move_on_together() -> None:
    async def scene(site: Site) -> None:
        session_id = await site.session()
        model_id = await site.model(session_id)
        samplers = []
        for seq, kind in enumerate(("snapshot", "inflight", "inflight"), 1):
            body = {"model_id": model_id, "seq_id": seq, "sampling_session_seq_id": seq, "kind": kind}
            samplers.append((await site.result("/save_weights_for_sampler", body))["sampling_session_id"])
        used = [revision(site, (await site.ok("/asample", sample(s)))["request_id"]).revision_id for s in samplers]
        assert used == [samplers[0], samplers[2], samplers[2]]

    play(scene)


@pytest.mark.parametrize("fields", [{}, {"sampling_session_seq_id": 1, "kind": "eternal"}])
def test_a_sampler_needs_a_name_or_a_number(fields: dict[str, object]) -> None:
    async def scene(site: Site) -> None:
        model_id = await site.model()
        answer = await site.post("/save_weights_for_sampler", {"model_id": model_id, "seq_id": 1} | fields)
        assert answer.status_code == 400
        assert (await site.result("/optim_step", step(model_id, 2)))["metrics"]

    play(scene)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"tokens": []}, "empty"),
        ({"tokens": [1000]}, "ids go from 0 to 999"),
        ({"params": {"max_tokens": 4094}}, "3 + 4094 > 4096"),
        ({"params": {"beam_width": 0.1}}, "beam_width"),
        ({"num_samples": 9}, "at most 8"),
        ({"num_samples": 0}, "num_samples"),
        ({"topk_sample_logprobs": 1001}, "topk_sample_logprobs"),
        ({"prompt_logprobs_last_n": 3}, "has 2"),
        ({"prompt": {"chunks": [{"type": "image", "data": "", "format": "png"}]}}, "'image'"),
    ],
)
def test_requests_that_cannot_be_served(fields: dict[str, object], words: str) -> None:
    async def scene(site: Site) -> None:
        tokens = fields.pop("tokens", (11, 12, 13))
        answer = await site.post("/asample", sample(await site.sampler(), 0, tokens, **fields))
        assert answer.status_code == 400
        assert words in answer.json()["detail"]

    play(scene, samples_per_request=8)


@pytest.mark.parametrize("params", [{"top_k": 2**70}, {"stop": [2**70]}])
def test_numbers_that_no_frame_can_carry_are_refused(params: dict[str, object]) -> None:
    async def scene(site: Site) -> None:
        assert (await site.post("/asample", sample(await site.sampler(), params=params))).status_code == 400

    play(scene)


def test_a_failed_sample_says_whose_fault_it_is() -> None:
    async def scene(site: Site) -> None:
        accepted = await site.ok("/asample", sample(await site.sampler(), params={"seed": 666}))
        failed = (await site.future(accepted["request_id"])).json()
        assert failed == {"error": "This request alone cannot go on.", "category": "server"}

    play(scene)


def test_another_keys_sampler_does_not_exist() -> None:
    async def scene(site: Site) -> None:
        session_id = await site.session()
        sampler = await site.sampler(session_id)
        accepted = await site.ok("/asample", sample(sampler))
        async with site.client_with(site.new_key("admin")) as other:
            asked = {"session_id": session_id, "sampling_session_seq_id": 9, "base_model": "fake"}
            assert (await site.post("/asample", sample(sampler, 1), other)).status_code == 404
            assert (await site.post("/create_sampling_session", asked, other)).status_code == 404
            assert (await other.get(f"/samplers/{sampler}")).status_code == 404
            assert (await site.post("/retrieve_future", accepted, other)).status_code == 404
        assert (await site.future(accepted["request_id"])).status_code == 200

    play(scene)


def test_the_end_of_a_session_ends_its_samples() -> None:
    async def scene(site: Site) -> None:
        session_id = await site.session()
        await site.start_engine(token_seconds=0.01)
        sampler = await site.sampler(session_id)
        accepted = await site.ok("/asample", sample(sampler, params={"max_tokens": 4000}))
        await site.ok(f"/sessions/{session_id}/finish", {})
        assert "cancelled" in (await site.future(accepted["request_id"])).json()["error"]
        assert (await site.post("/asample", sample(sampler, 1))).status_code == 400

    play(scene, engine=False)


def test_many_samples_wait_while_heartbeats_are_answered() -> None:
    """However slow the machine: none of them gets its first token before the heartbeat has its answer."""

    async def scene(site: Site) -> None:
        engine = Gated()
        await site.start_engine(engine=engine)
        try:
            session_id = await site.session()
            sampler = await site.sampler(session_id)
            posts = await asyncio.gather(*(site.ok("/asample", sample(sampler, n)) for n in range(300)))
            polls = [asyncio.create_task(site.future(post["request_id"])) for post in posts]
            assert (await site.post("/session_heartbeat", {"session_id": session_id})).status_code == 200
            assert site.services.dispatcher.n_waiting_samples == 300
            assert not any(poll.done() for poll in polls)
        finally:
            engine.open.set()
        assert {answer.status_code for answer in await asyncio.gather(*polls)} == {200}

    play(scene, engine=False, hang_seconds=120)


class Gated(FakeEngine):
    """Draws nothing until it is `open`."""

    def __init__(self) -> None:
        super().__init__(rooms=32)
        self.open = threading.Event()

    def sample_step(self) -> list[SampleEvent]:
        self.open.wait()
        return super().sample_step()


def test_prompt_tokens_reach_the_engine_as_they_were_sent() -> None:
    async def scene(site: Site) -> None:
        accepted = await site.ok("/asample", sample(await site.sampler(), tokens=[5, 999, 0]))
        op = site.services.dispatcher.tickets[accepted["request_id"]].op
        assert np.frombuffer(op.prompt[0].tokens, "<i4").tolist() == [5, 999, 0]
        assert op.params.stop_tokens == (0,)

    play(scene)


def test_training_goes_on_beside_sampling() -> None:
    async def scene(site: Site) -> None:
        session_id = await site.session()
        model_id = await site.model(session_id)
        accepted = await site.ok("/asample", sample(await site.sampler(session_id), params={"max_tokens": 500}))
        await site.train(passing(model_id, 1))
        assert (await site.result("/optim_step", step(model_id, 2)))["metrics"]
        assert (await site.future(accepted["request_id"])).status_code == 200

    play(scene)

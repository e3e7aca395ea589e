"""Long polls: held, answered when the result is there, and honest about what is not."""

import asyncio
import time

import pytest

from loreloop.engine.fake import FakeEngine
from tests.http.site import Site, new_model, play, sample


@pytest.mark.timed
def test_what_is_pending_is_held_and_then_said_to_be_so() -> None:
    async def scene(site: Site) -> None:
        model_id = await site.model()
        pending = {"request_id": (await site.ok("/optim_step", {"model_id": model_id, "seq_id": 2}))["request_id"]}
        began = time.monotonic()
        answer = await site.post("/retrieve_future", pending | {"allow_metadata_only": True})
        assert 0.3 <= time.monotonic() - began < 2
        assert answer.status_code == 408
        assert answer.json() == {"type": "try_again", "queue_state": "active"}

    play(scene, hold_seconds=0.3)


@pytest.mark.timed
def test_a_held_poll_is_answered_when_the_result_comes() -> None:
    async def scene(site: Site) -> None:
        model_id = await site.model()
        polls = [asyncio.create_task(site.future(f"{model_id}:2")) for _ in range(2)]
        await site.ok("/optim_step", {"model_id": model_id, "seq_id": 2})
        await site.ok("/optim_step", {"model_id": model_id, "seq_id": 1})
        late = [asyncio.create_task(site.future(f"{model_id}:2")) for _ in range(3)]
        began = time.monotonic()
        answers = await asyncio.gather(*late)
        assert time.monotonic() - began < 5
        assert len({answer.content for answer in answers}) == 1
        assert {answer.status_code for answer in await asyncio.gather(*polls)} <= {200, 404}

    play(scene, hold_seconds=10)


def test_requests_that_never_were_are_not_found() -> None:
    async def scene(site: Site) -> None:
        session_id = await site.session()
        for request_id in (f"{session_id}:train:0:5", "nobody:train:0:1", "nobody:sample:0:1", "", "cmpl-abc"):
            assert (await site.post("/retrieve_future", {"request_id": request_id})).status_code == 404

    play(scene, engine=False)


def test_a_forgotten_sample_is_gone_so_that_the_client_asks_anew() -> None:
    async def scene(site: Site) -> None:
        request_id = (await site.ok("/asample", sample(await site.sampler())))["request_id"]
        assert (await site.future(request_id)).status_code == 200
        site.services.dispatcher.forget_results(time.time() + 1)
        assert (await site.post("/retrieve_future", {"request_id": request_id})).status_code == 410

    play(scene)


@pytest.mark.timed
def test_heartbeats_are_answered_while_polls_are_held() -> None:
    async def scene(site: Site) -> None:
        session_id = await site.session()
        model_id = (await site.result("/create_model", new_model(session_id)))["model_id"]
        await site.ok("/optim_step", {"model_id": model_id, "seq_id": 2})
        polls = [asyncio.create_task(site.post("/retrieve_future", {"request_id": f"{model_id}:2"})) for _ in range(50)]
        await asyncio.sleep(1)
        began = time.monotonic()
        assert (await site.post("/session_heartbeat", {"session_id": session_id})).status_code == 200
        assert time.monotonic() - began < 2
        assert {answer.status_code for answer in await asyncio.gather(*polls)} == {408}

    play(scene, hold_seconds=3)


def test_whoever_waits_behind_others_is_told_how_many_and_about_how_long() -> None:
    async def scene(site: Site) -> None:
        await site.start_engine(engine=FakeEngine(rooms=1, token_seconds=0.02))
        sampler = await site.sampler()
        for number in range(3):  # by which the pace is known
            short = sample(sampler, number, params={"max_tokens": 1})
            await site.future((await site.ok("/asample", short))["request_id"])
        asked = [
            (await site.ok("/asample", sample(sampler, 10 + number, params={"max_tokens": 2000})))["request_id"]
            for number in range(3)
        ]
        answers = [await site.post("/retrieve_future", {"request_id": request_id}) for request_id in asked]
        assert [answer.status_code for answer in answers] == [408] * 3
        # The first is being drawn, and the second comes next.
        for answer in answers[:2]:
            assert answer.json() == {"type": "try_again", "queue_state": "active"}
        last = answers[2].json()
        assert last["queue_state"] == "paused_capacity"
        assert last["queue_state_reason"].startswith("1 request is before this one; its turn comes in about ")
        await site.post("/cancel_future", {"request_id": asked[0]})

    play(scene, engine=False, hold_seconds=0.3)


def test_training_that_waits_for_others_says_so() -> None:
    async def scene(site: Site) -> None:
        first, second = await site.model(number=0), await site.model(number=1)
        for model_id in (first, second):  # both wait for a sequence id that never comes
            await site.ok("/optim_step", {"model_id": model_id, "seq_id": 2})
        polls = [site.post("/retrieve_future", {"request_id": f"{each}:2"}) for each in (first, second)]
        answers = [(await poll).json() for poll in polls]
        assert answers[0] == {"type": "try_again", "queue_state": "active"}
        assert answers[1]["queue_state_reason"].startswith("1 request is before this one")

    play(scene, hold_seconds=0.1)

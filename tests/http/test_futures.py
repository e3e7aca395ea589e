"""Long polls: held, answered when the result is there, and honest about what is not."""

import asyncio
import time

import pytest

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

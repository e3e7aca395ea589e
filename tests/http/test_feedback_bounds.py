"""Bounds of feedback over its routes: rates, numbers and bytes of whoever gives it, sizes of what is sent, numbers in
what is asked."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import delete
from starlette.requests import Request

from loreloop.http.addresses import LARGEST_NUMBER, number_of
from loreloop.http.loop import giving, rooms
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.feedback import BUILT_IN, Metric
from loreloop.protocol.feedback_rules import checked_value
from loreloop.store import feedback
from loreloop.store.feedback_tables import FEEDBACK
from tests.http.loop_rig import LOOP, OTHER_TURN, TURN, feed, give, know, refusal, set_up, turn
from tests.http.site import Scene, Site, play
from tests.http.test_feedback_links import post, token_body
from tests.store.place import write_now

LONG = "x" * 200_000


def play_about(scene: Scene, **limits: int) -> None:
    async def whole(site: Site) -> None:
        set_up(site)
        await scene(site)

    play(whole, engine=False, hang_seconds=60.0, **limits)


async def tensorzero(site: Site, **fields: Any) -> int:
    body = {"metric_name": "thumb", "value": True, "inference_id": TURN} | fields
    return (await site.client.post("http://site/feedback", json=body)).status_code


def test_statements_without_a_person_are_bounded_by_their_key_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(site: Site) -> None:
        monkeypatch.setattr(giving, "OF_PERSON", giving.Rate(per_second=0.001, burst=2))
        monkeypatch.setattr(rooms, "MOST_OF_PERSON", 2)
        for number in range(6):
            assert await tensorzero(site, value=bool(number % 2)) == 200
            await give(site, target_id=OTHER_TURN, value=bool(number % 2))
        assert len(await feed(site)) == 12
        monkeypatch.setattr(giving.Speaker, "rate", giving.Rate(per_second=0.001, burst=3))
        site.services.feedback.rates.buckets.clear()
        assert [await tensorzero(site, value=bool(number % 2)) for number in range(4)] == [200, 200, 200, 429]

    play_about(scene)


def test_statements_about_one_target_are_bounded_in_number_and_a_retry_still_finds_its_own() -> None:
    async def scene(site: Site) -> None:
        first = await give(site, id="the-first", who="p0")
        for number in (1, 2):
            await give(site, who=f"p{number}")
        assert "3 statements about 'chatcmpl-one'" in await refusal(site, status=413, who="p3")
        assert await give(site, id="the-first", who="p0") == first
        assert "stands for other" in await refusal(site, status=409, id="the-first", who="p4")
        await give(site, target_id=OTHER_TURN, who="p3")
        async with site.client_with(site.new_key("feedback:bot")) as other:
            await give(site, other, who="p3")

    play_about(scene, target_statements=3)


def test_what_is_refused_or_repeated_takes_no_room() -> None:
    async def scene(site: Site) -> None:
        await give(site, who="ann", id="the-first")
        for _ in range(5):
            await give(site, who="ann")
            await refusal(site, who="ann", value=False, overrides="nothing")
        await give(site, who="bob")
        await refusal(site, status=413, who="eve")

    play_about(scene, target_statements=2)


def test_bytes_about_one_target_are_bounded() -> None:
    async def scene(site: Site) -> None:
        for number in range(5):
            await give(site, metric="comment", value=LONG, who=f"p{number}")
        words = await refusal(site, status=413, metric="comment", value=LONG, who="p5")
        assert "1 MiB of statements about 'chatcmpl-one' by this key are kept, which is the bound" in words
        await give(site, metric="comment", value="short", who="p5")

    play_about(scene, target_feedback_mib=1)


def test_bytes_of_a_deployment_are_bounded_until_some_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(site: Site) -> None:
        know(site, *(turn(f"t{number}") for number in range(7)))
        for number in range(5):
            await give(site, target_id=f"t{number}", metric="comment", value=LONG)
        about = {"target_id": "t6", "metric": "comment", "value": LONG}
        assert "1 MiB of statements on 'bot' are kept" in await refusal(site, status=413, **about)
        site.services.feedback.rooms.known.clear()  # as after a restart
        assert "1 MiB of statements on 'bot' are kept" in await refusal(site, status=413, **about)
        write_now(site.office.store, lambda connection: connection.execute(delete(FEEDBACK)))
        await refusal(site, status=413, **about)
        monkeypatch.setattr(rooms, "RECOUNT_SECONDS", -1.0)
        await give(site, **about)

    play_about(scene, feedback_mib=1)


def test_pages_fill_their_own_share_and_leave_the_rest() -> None:
    async def scene(site: Site) -> None:
        token = (await site.client.post(f"{LOOP}/feedback-tokens", json=token_body(per_minute=6000))).json()["token"]
        text = {"metric": "comment", "value": "x" * giving.LONGEST_PUBLIC}
        async with site.client_with(None) as browser:
            codes = [(await post(browser, token, who=f"p{number}", **text)).status_code for number in range(64)]
            assert codes.count(413) == 64 - (1 << 20) // (giving.LONGEST_PUBLIC + 2 + feedback.ROW_BYTES + 5)
            full = await post(browser, token, who="last", **text)
            assert "from pages or links are kept, which is the bound" in full.json()["error"]["message"]
        await give(site, **text)

    play_about(scene, public_feedback_mib=1)


def test_what_a_statement_takes_is_counted_alike_before_and_after() -> None:
    async def scene(site: Site) -> None:
        odd = {"metric": "comment", "value": "é\0\U0001f600", "why": "ü", "who": "ß", "tags": {"a": "\n"}}
        said = await give(site, **odd)
        found = site.services.store.read(feedback.find, said["id"])
        assert found is not None
        kept = site.services.store.read(feedback.kept_of, "bot")
        assert kept == feedback.Kept(1, feedback.n_bytes_of(found))
        assert site.services.store.read(feedback.kept_of, "bot", found.giver, TURN) == kept
        assert site.services.store.read(feedback.kept_of, "bot", found.giver, OTHER_TURN) == feedback.Kept()

    play_about(scene)


def test_large_bodies_are_refused_early() -> None:
    async def scene(site: Site) -> None:
        token = (await site.client.post(f"{LOOP}/feedback-tokens", json=token_body())).json()["token"]
        link = {"target_id": TURN, "metric": "comment"}
        url = (await site.client.post(f"{LOOP}/feedback-links", json=link)).json()["url"]
        async with site.client_with(None) as public:
            headers = {"authorization": f"Bearer {token}", "origin": "https://shop.example"}
            large = await public.post(f"{LOOP}/feedback", content=b" " * (600 << 10), headers=headers)
            assert (large.status_code, "exceeds 512 KiB" in large.text) == (413, True)
            form = {"value": "x" * (600 << 10)}
            assert (await public.post(url, data=form)).status_code == 413
            long = await post(public, token, metric="comment", value="x" * (giving.LONGEST_PUBLIC + 1))
            assert (long.status_code, "from a browser or a link 16384 are taken" in long.text) == (413, True)
            assert (await public.post(url, data={"value": "x" * 20_000})).status_code == 413
        for path in ("/loop/v1/feedback", "/feedback", "/loop/v1/feedback-tokens", "/loop/v1/feedback-links"):
            assert (await site.client.post(f"http://site{path}", content=b" " * (5 << 20))).status_code == 413
        # What may be said may also be written in the longest way.
        escaped = '"' + "\\ud83d\\ude00" * (1 << 18) + '"'
        body = f'{{"target_id": "{TURN}", "metric": "comment", "value": {escaped}}}'
        assert (await site.client.post(f"{LOOP}/feedback", content=body.encode())).status_code == 200

    play_about(scene)


NUMBERS = st.one_of(
    st.integers(),
    st.integers(min_value=-(10**400), max_value=10**400),
    st.sampled_from([10**400, -(10**400), 1 << 63, 1 << 64, 5e-324, 1e308, -0.0]),
    st.floats(),
)
METRICS = st.sampled_from([*BUILT_IN.values(), Metric("own", "float", "episode"), Metric("own", "boolean")])


@given(METRICS, st.one_of(NUMBERS, st.booleans(), st.text(), st.none(), st.lists(NUMBERS)))
def test_every_value_is_kept_or_refused(metric: Metric, value: object) -> None:
    try:
        kept = checked_value(metric, value)
    except BadRequest:
        return
    assert isinstance(kept, bool | float | str)
    assert not isinstance(kept, float) or math.isfinite(kept)


@given(st.one_of(st.text(), st.integers().map(str), st.integers(0, 6000).map(lambda n: "9" * n)))
def test_a_number_in_an_address_is_read_or_refused(text: str) -> None:
    request = Request({"type": "http", "query_string": b"", "headers": []})
    request._query_params = {"after": text}  # type: ignore[assignment]
    try:
        number = number_of(request, "after")
    except BadRequest:
        return
    assert 0 <= number <= LARGEST_NUMBER


@pytest.mark.parametrize("digits", ["9" * 5000, "9" * 19, "9" * 400, "٣" * 5000, "1" * 4301, "1e3", "+1", " 1", ""])
def test_no_number_in_an_address_is_a_fault_of_ours(digits: str) -> None:
    async def scene(site: Site) -> None:
        for path in ("feedback", "turns", "deleted-persons", "persons"):
            for name in ("after", "limit"):
                answer = await site.client.get(f"{LOOP}/deployments/bot/{path}", params={name: digits})
                assert answer.status_code < 500, (path, name)
        assert (await site.client.get(f"{LOOP}/deployments/bot/feedback?after={'9' * 5000}")).status_code == 400

    play_about(scene)


@pytest.mark.parametrize("number", ["9" * 400, "-" + "9" * 400, "1e400", "9" * 5000, "0." + "9" * 5000, "1" + "0" * 30])
@pytest.mark.parametrize("metric", ["verdict", "score", "thumb", "comment"])
def test_no_number_in_a_body_is_a_fault_of_ours(number: str, metric: str) -> None:
    async def scene(site: Site) -> None:
        ours = f'{{"target_id": "{TURN}", "metric": "{metric}", "value": {number}}}'
        theirs = f'{{"inference_id": "{TURN}", "metric_name": "{metric}", "value": {number}}}'
        for path, body in (("/loop/v1/feedback", ours), ("/feedback", theirs)):
            answer = await site.client.post(f"http://site{path}", content=body.encode())
            is_fine = number.startswith("0.") and metric in ("verdict", "score")
            assert answer.status_code == (200 if is_fine else 400), answer.text
        deployment = f'{{"target": "fake", "canary_percent": {number}}}'
        answer = await site.client.put(f"{LOOP}/deployments/other", content=deployment.encode())
        assert answer.status_code in (400, 404)
        link = f'{{"target_id": "{TURN}", "metric": "score", "expires_seconds": {number}}}'
        assert (await site.client.post(f"{LOOP}/feedback-links", content=link.encode())).status_code == 400
        url = (await site.client.post(f"{LOOP}/feedback-links", json={"target_id": TURN, "metric": "verdict"})).json()
        async with site.client_with(None) as mail:
            assert (await mail.post(url["url"], data={"value": number})).status_code in (200, 400)

    play_about(scene)

"""The playground: the names that may be asked, and answers that come while they are written."""

import json
import re

from tests.http.browser import UI, Browser, signed_in
from tests.http.recorded import Room, play_recorded

ASKED = {"model": "bot", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 20, "stream": True}


async def token_of(browser: Browser) -> str:
    found = re.search(r'data-token="(\w+)"', await browser.look("/playground"))
    assert found
    return found[1]


def test_the_names_are_those_that_the_key_may_ask() -> None:
    async def scene(room: Room) -> None:
        page = await (await signed_in(room.site, "infer:bot")).look("/playground?right=fake")
        assert re.findall(r'<option value="([^"]+)"', page) == ["bot"]
        assert re.findall(r'class="model" list="models" value="([^"]+)"', page) == ["bot", "fake"]

    play_recorded(scene)


def test_an_answer_is_streamed_to_the_visit_that_asks() -> None:
    async def scene(room: Room) -> None:
        room.says("well then")
        browser = await signed_in(room.site, "infer")
        headers = {"origin": "http://site", "x-form-token": await token_of(browser)}
        answer = await browser.client.post(f"{UI}/playground/chat", json=ASKED | {"model": "fake"}, headers=headers)
        assert answer.status_code == 200, answer.text
        chunks = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
        assert text == "well then"
        assert answer.headers["content-security-policy"]

    play_recorded(scene)


def test_nobody_else_asks_in_the_name_of_a_visit() -> None:
    async def scene(room: Room) -> None:
        browser = await signed_in(room.site, "infer")
        token = await token_of(browser)
        for headers in ({"origin": "http://elsewhere", "x-form-token": token}, {"origin": "http://site"}, {}):
            answer = await browser.client.post(f"{UI}/playground/chat", json=ASKED, headers=headers)
            assert answer.status_code == 403
        only = await signed_in(room.site, "infer:elsewhere")
        headers = {"origin": "http://site", "x-form-token": await token_of(only)}
        assert (await only.client.post(f"{UI}/playground/chat", json=ASKED, headers=headers)).status_code == 403

    play_recorded(scene)


def test_a_thumb_counts_as_feedback() -> None:
    async def scene(room: Room) -> None:
        browser = Browser(room.site)
        await browser.sign_in(room.key)
        headers = {"origin": "http://site", "x-form-token": await token_of(browser)}
        assert (await browser.read("/playground"))["judged"] == ["bot"]
        room.says("well then")
        answer = await browser.client.post(f"{UI}/playground/chat", json=ASKED, headers=headers)
        turn_id = json.loads(next(line[6:] for line in answer.text.splitlines() if line.startswith("data: {")))["id"]
        for value in (False, True):
            body = {"target_id": turn_id, "value": value}
            said = await browser.client.post(f"{UI}/playground/thumb", json=body, headers=headers)
            assert said.status_code == 200, said.text
        (turn,) = await room.turns()
        assert turn["id"] == turn_id
        found = (await room.loop("GET", "/deployments/bot/feedback"))["feedback"]
        assert [(one["metric"], one["target_id"], one["value"]) for one in found] == [
            ("thumb", turn_id, False),
            ("thumb", turn_id, True),
        ]
        assert found[1]["overrides"] == found[0]["id"]

    play_recorded(scene)


def test_nobody_judges_without_the_scope_or_from_elsewhere() -> None:
    async def scene(room: Room) -> None:
        asked = await room.ask("an answer")
        await room.turns()
        body = {"target_id": asked.id, "value": True}
        for scope in ("infer:bot", "train"):
            browser = await signed_in(room.site, scope)
            headers = {"origin": "http://site", "x-form-token": await token_of(browser)}
            assert (await browser.read("/playground"))["judged"] == []
            answer = await browser.client.post(f"{UI}/playground/thumb", json=body, headers=headers)
            assert answer.status_code == 403
        browser = Browser(room.site)
        await browser.sign_in(room.key)
        token = await token_of(browser)
        for headers in ({"origin": "http://elsewhere", "x-form-token": token}, {"origin": "http://site"}, {}):
            assert (await browser.client.post(f"{UI}/playground/thumb", json=body, headers=headers)).status_code == 403
        headers = {"origin": "http://site", "x-form-token": token}
        for wrong in ({"target_id": "unknown", "value": True}, {"target_id": asked.id}, body | {"metric": "score"}):
            answer = await browser.client.post(f"{UI}/playground/thumb", json=wrong, headers=headers)
            assert answer.status_code in (400, 404)
        assert (await room.loop("GET", "/deployments/bot/feedback"))["feedback"] == []

    play_recorded(scene)

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

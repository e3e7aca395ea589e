"""Answers of the responses API that are referred to: by previous_response_id, by item, told again and deleted."""

import errno
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from loreloop.store import keys, responses
from loreloop.store.rows import KeptResponse
from loreloop.store.store import Store
from tests.http.scripted import RESPONSES, Script, play_script
from tests.store.place import write_now

SAID = "<think>hm</think>Hello"
UNKNOWN = f"resp_{'0' * 32}"


async def turn(script: Script, said: str = "And more.", **fields: Any) -> dict[str, Any]:
    return await script.whole(RESPONSES, said, **fields)


async def get(script: Script, path: str, key: str | None = None, **query: Any) -> httpx.Response:
    client = script.site.client_with(key) if key else script.site.client
    return await client.get(f"http://site{RESPONSES}/{path}", params=query)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_goes_on_from_the_one_before(stream: bool) -> None:
    async def scene(script: Script) -> None:
        asked = {"input": "first question", "instructions": "speak low"}
        if stream:
            first = (await script.events(RESPONSES, SAID, **asked))[-1]["response"]
        else:
            first = await turn(script, SAID, **asked)
        assert first["store"] is True
        second = await turn(script, input="second question", previous_response_id=first["id"])
        assert second["previous_response_id"] == first["id"]
        whole = [
            {"role": "user", "content": "first question"},
            *first["output"],
            {"role": "user", "content": "second question"},
        ]
        prompt = script.prompt()
        assert "speak low" not in prompt
        await turn(script, input=whole)
        assert script.prompt() == prompt
        await turn(script, input="third question", previous_response_id=second["id"])
        assert all(said in script.prompt() for said in ("first question", "Hello", "And more.", "third question"))

    play_script(scene)


def test_a_call_and_its_result_go_on() -> None:
    async def scene(script: Script) -> None:
        first = await turn(script, '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>')
        (call,) = first["output"]
        result = {"type": "function_call_output", "call_id": call["call_id"], "output": "forty"}
        await turn(script, input=[result], previous_response_id=first["id"])
        assert '{"x": 1}' in script.prompt()
        assert "forty" in script.prompt()

    play_script(scene)


def test_items_are_put_where_they_are_referred_to() -> None:
    async def scene(script: Script) -> None:
        first = await turn(script, SAID, input="hi")
        refs = [{"type": "item_reference", "id": item["id"]} for item in first["output"]]
        question = {"role": "user", "content": "go on"}
        await turn(script, input=[{"role": "user", "content": "hi"}, *refs, question])
        by_reference = script.prompt()
        await turn(script, input=[{"role": "user", "content": "hi"}, *first["output"], question])
        assert script.prompt() == by_reference
        (item,) = (await get(script, f"{first['id']}/input_items")).json()["data"]
        await turn(script, input=[{"type": "item_reference", "id": item["id"]}])
        assert "hi" in script.prompt()

    play_script(scene)


def test_an_answer_is_told_again_and_deleted() -> None:
    async def scene(script: Script) -> None:
        first = await turn(script, SAID, input="one")
        second = await turn(script, input="two", previous_response_id=first["id"])
        assert (await get(script, first["id"])).json() == first
        items = (await get(script, f"{second['id']}/input_items", order="asc")).json()
        said = [item["content"][0]["text"] for item in items["data"]]
        assert said == ["one", "hm", "Hello", "two"]
        page = (await get(script, f"{second['id']}/input_items", limit=3)).json()
        assert ([item["content"][0]["text"] for item in page["data"]], page["has_more"]) == (
            ["two", "Hello", "hm"],
            True,
        )
        rest = (await get(script, f"{second['id']}/input_items", after=page["last_id"])).json()
        assert ([item["content"][0]["text"] for item in rest["data"]], rest["has_more"]) == (["one"], False)
        cancelled = await script.site.client.post(f"http://site{RESPONSES}/{first['id']}/cancel")
        assert cancelled.status_code == 400
        gone = await script.site.client.delete(f"http://site{RESPONSES}/{first['id']}")
        assert gone.json() == {"id": first["id"], "object": "response", "deleted": True}
        assert (await get(script, first["id"])).status_code == 404
        answer = await script.ask(RESPONSES, "x", 400, previous_response_id=second["id"])
        assert "Send the whole input" in answer.text

    play_script(scene)


def test_what_was_not_kept_or_is_anothers_is_not_found() -> None:
    async def scene(script: Script) -> None:
        unkept, kept = await turn(script, store=False), await turn(script)
        assert (unkept["store"], kept["store"]) == (False, True)
        assert (await get(script, unkept["id"])).status_code == 404
        other = script.site.client_with(script.site.new_key("infer"))
        body = {"model": "fake", "input": "x", "previous_response_id": kept["id"]}
        answer = await other.post(f"http://site{RESPONSES}", json=body)
        assert (answer.status_code, kept["id"] in answer.text) == (400, True)
        assert (await other.get(f"http://site{RESPONSES}/{kept['id']}")).status_code == 404
        assert (await other.delete(f"http://site{RESPONSES}/{kept['id']}")).status_code == 404
        refused = [{"previous_response_id": UNKNOWN}, {"previous_response_id": "x"}]
        refused += [{"input": [{"type": "item_reference", "id": name}]} for name in ("msg_1", f"msg_{'0' * 32}_0", "")]
        for fields in refused:
            answer = await script.ask(RESPONSES, "x", 400, **fields)
            assert "Send the" in answer.json()["error"]["message"]

    play_script(scene)


def test_each_key_keeps_so_many_bytes_the_newest_used() -> None:
    async def scene(script: Script) -> None:
        store, key_id = script.site.services.store, script.site.office.key_id
        for number in range(4):
            row = KeptResponse(f"r{number}", key_id, 100.0 + number, "r0" if number == 2 else None, "[]", "x" * 98)
            write_now(store, responses.keep, row, ("r0",) if number == 2 else (), 300)
        left = [name for name in ("r0", "r1", "r2", "r3") if store.read(responses.find, key_id, name)]
        assert left == ["r0", "r2", "r3"]  # r0 was used by r2
        write_now(store, responses.sweep, 103.5 + responses.TTL_SECONDS)
        assert not any(store.read(responses.find, key_id, name) for name in left)
        assert (await turn(script))["store"] is True
        write_now(store, responses.sweep, time.time())

    play_script(scene)


def test_kept_answers_outlive_their_store(tmp_path: Path) -> None:
    rows = [KeptResponse("r0", "k", 1.0, None, "[]", "{}"), KeptResponse("r1", "k", 2.0, "r0", "[]", "{}")]
    with closing(Store(tmp_path, "os")) as before:
        for row in rows:
            write_now(before, responses.keep, row, (), 1000)
    with closing(Store(tmp_path, "os")) as after:
        assert after.read(responses.chain, "k", "r1") == rows
        assert after.read(responses.chain, "another", "r1") == []


def test_answers_of_a_revoked_key_are_swept() -> None:
    async def scene(script: Script) -> None:
        store, now = script.site.services.store, time.time()
        secrets = [script.site.new_key("infer"), script.site.new_key("infer")]
        told = []
        for secret in secrets:
            answer = await script.site.client_with(secret).post(
                f"http://site{RESPONSES}", json={"model": "fake", "input": "x", "max_output_tokens": 2}
            )
            told.append(answer.json()["id"])
        rows = [store.read(keys.find, secret, now) for secret in secrets]
        write_now(store, keys.revoke, rows[0].id, now)
        write_now(store, responses.sweep, now)
        left = [store.read(responses.find, row.id, name) is not None for row, name in zip(rows, told, strict=True)]
        assert left == [False, True]

    play_script(scene)


def test_an_answer_is_used_by_who_takes_an_item_of_it() -> None:
    async def scene(script: Script) -> None:
        first, other = await turn(script, SAID), await turn(script, SAID)
        before = time.time()
        await turn(script, input=[{"type": "item_reference", "id": first["output"][0]["id"]}])
        write_now(script.site.services.store, responses.sweep, before + responses.TTL_SECONDS)
        found = [(await get(script, answer["id"])).status_code for answer in (first, other)]
        assert found == [200, 404]

    play_script(scene)


def test_an_item_can_be_referred_to_once() -> None:
    async def scene(script: Script) -> None:
        first = await turn(script, SAID, input="hi")
        reference = {"type": "item_reference", "id": first["output"][0]["id"]}
        answer = await script.ask(RESPONSES, "x", 400, input=[reference, reference])
        assert "twice" in answer.text
        await turn(script, input=[reference], previous_response_id=first["id"])

    play_script(scene)


@pytest.mark.timed
def test_many_references_are_read_in_one_go() -> None:
    async def scene(script: Script) -> None:
        much = {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "x" * (8 << 20)}]}
        items = [much | {"content": [{"type": "reasoning_text", "text": "t"}]}]
        items += [{"role": "user", "content": "q"} for _ in range(1000)]
        first = await turn(script, input=items)
        own = [f"msg_{first['id'].removeprefix('resp_')}_in{at}" for at in range(1, 1001)]
        started = time.monotonic()
        await turn(script, input=[{"type": "item_reference", "id": name} for name in own])
        assert time.monotonic() - started < 4.0  # reading the answer once for each takes thrice as long

    play_script(scene)


def test_a_list_of_items_refuses_what_it_cannot_follow() -> None:
    async def scene(script: Script) -> None:
        first = await turn(script, SAID, input="one")
        second = await turn(script, input="two", previous_response_id=first["id"])
        path = f"{second['id']}/input_items"
        wrong = [{"limit": "9" * 5000}, {"limit": "0"}, {"limit": "101"}, {"limit": "x"}, {"order": "up"}]
        for query in [*wrong, {"after": "nothing"}]:
            refused = await get(script, path, **query)
            assert (refused.status_code, next(iter(query)) in refused.json()["detail"]) == (400, True)
        twice = [{"role": "user", "content": str(n), "id": "same"} for n in range(3)]
        third = await turn(script, input=twice)
        page = {"limit": 1, "order": "asc", "after": "same"}
        assert (await get(script, f"{third['id']}/input_items", **page)).json()["has_more"] is False
        await script.site.client.delete(f"http://site{RESPONSES}/{first['id']}")
        gone = await get(script, path)
        assert (gone.status_code, first["id"] in gone.json()["detail"]) == (404, True)

    play_script(scene)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_a_full_disk_does_not_take_is_told(stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async def scene(script: Script) -> None:
        monkeypatch.setattr(responses, "keep", full)
        if stream:
            told = (await script.events(RESPONSES, "Hello"))[-1]["response"]
        else:
            told = await turn(script, "Hello")
        assert (told["status"], told["store"]) == ("completed", False)
        assert told["output"][0]["content"][0]["text"] == "Hello"

    play_script(scene)


def test_an_input_is_counted() -> None:
    async def scene(script: Script) -> None:
        answer = await turn(script, SAID, input="hi")
        body = {"model": "fake", "input": "hi", "tools": answer["tools"]}
        counted = await script.site.client.post(f"http://site{RESPONSES}/input_tokens", json=body)
        assert counted.json()["input_tokens"] == answer["usage"]["input_tokens"]

    play_script(scene)

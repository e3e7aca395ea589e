"""OpenAI's routes: answers as its client reads them, whole and streamed, and refusals by name."""

import asyncio
import json
from typing import Any

import pytest

from tests.http.site import Site, play, save

PROMPT = "11 12 13"
CHAT = [{"role": "system", "content": "11"}, {"role": "user", "content": [{"type": "text", "text": "12 13"}]}]


async def ask(site: Site, status_code: int = 200, **fields: object) -> dict[str, Any]:
    chat = "messages" in fields
    body = {"model": "fake", "max_tokens": 4, "seed": 1} | ({} if chat else {"prompt": PROMPT}) | fields
    answer = await site.client.post(f"http://site/v1/{'chat/' if chat else ''}completions", json=body)
    assert answer.status_code == status_code, answer.text
    return answer.json()


async def events(site: Site, **fields: object) -> list[dict[str, Any]]:
    chat = "messages" in fields
    body = {"model": "fake", "max_tokens": 4, "seed": 1, "stream": True} | ({} if chat else {"prompt": PROMPT}) | fields
    answer = await site.client.post(f"http://site/v1/{'chat/' if chat else ''}completions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_models_are_bases_and_aliases() -> None:
    async def scene(site: Site) -> None:
        listed = (await site.client.get("http://site/v1/models")).json()
        assert [model["id"] for model in listed["data"]] == ["fake", "org/alias"]

    play(scene)


def test_a_completion_says_text_reason_and_usage() -> None:
    async def scene(site: Site) -> None:
        answer = await ask(site)
        assert answer["object"] == "text_completion"
        assert answer["choices"][0]["finish_reason"] == "length"
        assert len(answer["choices"][0]["text"].split()) == 4
        assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (3, 4)
        again = await ask(site, prompt=[11, 12, 13])
        assert again | {"id": 0, "created": 0} == answer | {"id": 0, "created": 0}

    play(scene)


def test_a_chat_is_rendered_by_the_models_template() -> None:
    async def scene(site: Site) -> None:
        chat = await ask(site, messages=CHAT)
        assert chat["object"] == "chat.completion"
        assert chat["choices"][0]["message"]["role"] == "assistant"
        plain = await ask(site)
        assert chat["choices"][0]["message"]["content"] == plain["choices"][0]["text"]
        assert chat["usage"] == plain["usage"]

    play(scene)


def test_several_samples_differ_and_all_count() -> None:
    async def scene(site: Site) -> None:
        answer = await ask(site, n=3)
        assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
        assert len({choice["text"] for choice in answer["choices"]}) == 3
        assert answer["usage"]["completion_tokens"] == 12

    play(scene)


def test_a_stop_string_ends_the_text_and_is_not_shown() -> None:
    async def scene(site: Site) -> None:
        words = (await ask(site))["choices"][0]["text"].split()
        stopped = (await ask(site, stop=words[2]))["choices"][0]
        assert stopped["text"].split() == words[:2]
        assert stopped["finish_reason"] == "stop"

    play(scene)


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("stopped", [True, False])
def test_a_stream_adds_up_to_the_whole(chat: bool, stopped: bool) -> None:
    async def scene(site: Site) -> None:
        fields: dict[str, object] = {"n": 2, "max_tokens": 9} | ({"messages": CHAT} if chat else {})
        if stopped:
            fields["stop"] = [(await ask(site, max_tokens=9))["choices"][0]["text"].split()[4]]
        whole = (await ask(site, **fields))["choices"]
        pieces = [choice for event in await events(site, **fields) for choice in event["choices"]]
        for index, choice in enumerate(whole):
            mine = [piece for piece in pieces if piece["index"] == index]
            text = choice["message"]["content"] if chat else choice["text"]
            assert "".join(p["delta"].get("content", "") if chat else p["text"] for p in mine) == text
            assert [p["finish_reason"] for p in mine if p["finish_reason"]] == [choice["finish_reason"]]

    play(scene)


def test_a_stream_gives_usage_when_asked() -> None:
    async def scene(site: Site) -> None:
        last = (await events(site, stream_options={"include_usage": True}))[-1]
        assert (last["choices"], last["usage"]["total_tokens"]) == ([], 7)
        assert all("usage" not in event for event in await events(site))

    play(scene)


def test_an_answer_ends_with_the_window() -> None:
    async def scene(site: Site) -> None:
        window = (await site.client.get("http://site/api/v1/get_server_capabilities")).json()["supported_models"][0]
        for fields in ({}, {"messages": CHAT}):
            answer = await ask(site, max_tokens=10**9, **fields)
            used = answer["usage"]
            assert used["prompt_tokens"] + used["completion_tokens"] == window["max_context_length"]
            assert answer["choices"][0]["finish_reason"] == "length"
        refused = await ask(site, 400, prompt=[11] * window["max_context_length"], max_tokens=1)
        assert "context window" in refused["error"]["message"]

    play(scene)


def test_logprobs_come_in_each_apis_form() -> None:
    async def scene(site: Site) -> None:
        plain = (await ask(site, logprobs=0))["choices"][0]
        assert "".join(plain["logprobs"]["tokens"]) == plain["text"].replace(" ", "")
        assert all(value < 0 for value in plain["logprobs"]["token_logprobs"])
        chat = (await ask(site, messages=CHAT, logprobs=True))["choices"][0]["logprobs"]["content"]
        assert [entry["logprob"] for entry in chat] == plain["logprobs"]["token_logprobs"]
        assert (await ask(site))["choices"][0]["logprobs"] is None

    play(scene)


def test_logprobs_of_a_stream_are_given_or_refused() -> None:
    async def scene(site: Site) -> None:
        body = {"model": "fake", "prompt": PROMPT, "max_tokens": 2, "stream": True, "logprobs": 1}
        answer = await site.client.post("http://site/v1/completions", json=body)
        assert answer.status_code == 400 or '"token_logprobs"' in answer.text

    play(scene)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"logit_bias": {"1000": 1}}, "logit_bias"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"best_of": 2}, "best_of"),
        ({"messages": CHAT, "functions": [{}]}, "functions"),
        ({"messages": CHAT, "tool_choice": "required"}, "tool_choice"),
        ({"messages": CHAT, "response_format": {"type": "xml"}}, "response_format"),
        (
            {"messages": CHAT, "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": 5}}}},
            "schema",
        ),
        ({"messages": [{"role": "tool", "content": "1"}]}, "tool_call_id"),
        ({"grammar": "start: nothing"}, "grammar"),
        ({"grammar": 'start: "a"', "regex": "b"}, "grammar and regex"),
        ({"prompt": ["1", 2]}, "mixes"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]},
            "image_url",
        ),
        ({"messages": []}, "messages"),
        ({"n": 0}, "$.n"),
        ({"top_p": -0.1}, "$.top_p"),
        ({"temperature": 1e-300}, "too small to divide by"),
        ({"prompt": [1, 1000]}, "ids go from"),
        ({"prompt": ""}, "empty"),
        ({"stop": [""]}, "empty string"),
    ],
)
def test_what_is_not_served_is_refused_by_name(fields: dict[str, object], words: str) -> None:
    async def scene(site: Site) -> None:
        error = (await ask(site, 400, **fields))["error"]
        assert words in error["message"]
        assert error["type"] == "invalid_request_error"

    play(scene)


def test_an_unknown_model_lists_what_comes_near() -> None:
    async def scene(site: Site) -> None:
        assert "Did you mean 'fake'" in (await ask(site, 404, model="fak"))["error"]["message"]

    play(scene)


async def saved(site: Site) -> str:
    model_id = await site.model()
    return (await site.result("/save_weights_for_sampler", save(model_id, 1, "a")))["path"]


def test_a_checkpoint_is_a_model_as_soon_as_it_is_saved() -> None:
    async def scene(site: Site) -> None:
        path = await saved(site)
        for model in (path, f"fake;{path}", f"org/alias;{path}"):
            assert (await ask(site, model=model))["model"] == model
        async with site.client_with(site.new_key("infer")) as other:
            body = {"model": path, "prompt": PROMPT}
            assert (await other.post("http://site/v1/completions", json=body)).status_code == 404

    play(scene)


def test_a_users_failure_in_the_engine_is_a_400() -> None:
    async def scene(site: Site) -> None:
        path = await saved(site)
        (state_file,) = site.services.store.folder.glob("checkpoints/*/*/*/state.json")
        state_file.unlink()
        assert "cannot be read" in (await ask(site, 400, model=path))["error"]["message"]

    play(scene)


def test_a_failure_in_the_engine_is_a_500_or_an_event() -> None:
    async def scene(site: Site) -> None:
        assert "cannot go on" in (await ask(site, 500, seed=666))["error"]["message"]
        assert "cannot go on" in (await events(site, seed=666))[-1]["error"]["message"]

    play(scene)


def test_a_failed_response_says_whose_fault_it_is() -> None:
    async def failed(site: Site, **fields: object) -> dict[str, Any]:
        body = {"model": "fake", "input": PROMPT, "stream": True} | fields
        answer = await site.client.post("http://site/v1/responses", json=body)
        return json.loads(answer.text.split("data: ")[-1])["response"]["error"]

    async def scene(site: Site) -> None:
        error = await failed(site, seed=666)
        assert (error["code"], "cannot go on" in error["message"]) == ("server_error", True)
        path = await saved(site)
        (state_file,) = site.services.store.folder.glob("checkpoints/*/*/*/state.json")
        state_file.unlink()
        error = await failed(site, model=path)
        assert (error["code"], "cannot be read" in error["message"]) == ("invalid_prompt", True)

    play(scene)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_stops_its_sample(stream: bool) -> None:
    async def scene(site: Site) -> None:
        await site.start_engine(token_seconds=0.01)
        await left(site, {"model": "fake", "prompt": PROMPT, "max_tokens": 4000, "stream": stream})
        assert not site.services.dispatcher.tickets
        assert site.services.dispatcher.n_waiting_samples == 0

    play(scene, engine=False)


async def left(site: Site, body: dict[str, object]) -> None:
    """Posts a completion and hangs up."""
    headers = [(b"x-api-key", site.new_key("infer").encode())]
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "query_string": b"", "headers": headers}
    said = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def receive() -> dict[str, object]:
        return said.pop() if said else {"type": "http.disconnect"}

    async def send(message: dict[str, object]) -> None:
        pass

    await asyncio.wait_for(site.app(scope, receive, send), 10)

"""The unmodified `openai` client against a live server: whole and streamed, tools, formats, log-probabilities."""

import asyncio
import json

import numpy as np
import openai
import pydantic
import pytest

from loreloop.cli.server import RunningServer

CHAT = [{"role": "user", "content": "What is the weather in Oslo?"}]
WEATHER = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": WEATHER}}]
STRICT_TOOLS = [{"type": "function", "function": TOOLS[0]["function"] | {"strict": True}}]


class Place(pydantic.BaseModel):
    warm: bool
    kind: bool


@pytest.fixture
def client(server: RunningServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0)


def ask(client: openai.OpenAI, **fields):
    return client.chat.completions.create(**{"model": "tiny", "messages": CHAT, "max_tokens": 12, "seed": 1} | fields)


def streamed(client: openai.OpenAI, **fields):
    """Content, arguments of calls by index, reasons."""
    content, calls, reasons = "", {}, []
    for chunk in ask(client, stream=True, **fields):
        for choice in chunk.choices:
            content += choice.delta.content or ""
            for call in choice.delta.tool_calls or ():
                name, arguments = calls.get(call.index, ("", ""))
                calls[call.index] = (name + (call.function.name or ""), arguments + (call.function.arguments or ""))
            reasons += [choice.finish_reason] if choice.finish_reason else []
    return content, calls, reasons


def test_streamed_and_whole_answers_are_the_same(client):
    whole = ask(client).choices[0]
    assert streamed(client) == (whole.message.content, {}, [whole.finish_reason])


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
@pytest.mark.parametrize("temperature", [0.0, 1.0, 2.0])
def test_a_forced_call_is_always_valid_even_of_random_weights(client, choice, temperature):
    fields = {"tools": TOOLS, "tool_choice": choice, "parallel_tool_calls": False, "max_tokens": 300}
    answer = ask(client, temperature=temperature, **fields).choices[0]
    assert answer.finish_reason == "tool_calls"
    (call,) = answer.message.tool_calls
    found = json.loads(call.function.arguments)
    assert call.function.name == "weather"
    assert found["city"] in ("Oslo", "Rome")
    assert 1 <= found["days"] <= 9
    content, calls, reasons = streamed(client, temperature=temperature, **fields)
    assert (content, calls, reasons) == ("", {0: ("weather", call.function.arguments)}, ["tool_calls"])


def test_a_named_tool_is_called_once(client):
    choice = {"type": "function", "function": {"name": "weather"}}
    answer = ask(client, tools=TOOLS, tool_choice=choice, max_tokens=400).choices[0]
    assert len(answer.message.tool_calls) == 1


def test_results_of_tools_go_back_in(client):
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo", "days": 1}'}}
    history = [
        *CHAT,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ]
    assert ask(client, messages=history, tools=TOOLS).usage.prompt_tokens > ask(client).usage.prompt_tokens


def test_a_schema_is_parsed_into_a_model(client):
    answer = client.chat.completions.parse(
        model="tiny", messages=CHAT, response_format=Place, max_tokens=100, temperature=1.5, seed=2
    )
    assert isinstance(answer.choices[0].message.parsed, Place)


def test_a_format_beside_tools_gives_one_or_the_other(client):
    fields = {"response_format": Place, "tools": STRICT_TOOLS, "max_tokens": 300, "temperature": 1.5}
    kinds = set()
    for seed in range(12):
        answer = client.chat.completions.parse(
            **{"model": "tiny", "messages": CHAT, "seed": seed, "parallel_tool_calls": False} | fields
        )
        message = answer.choices[0].message
        assert (message.parsed is None) == bool(message.tool_calls)
        kinds.add(bool(message.tool_calls))
        for call in message.tool_calls or ():
            assert json.loads(call.function.arguments)["city"] in ("Oslo", "Rome")
    assert kinds == {False, True}
    forced = client.chat.completions.parse(
        model="tiny", messages=CHAT, tool_choice="required", seed=1, parallel_tool_calls=False, **fields
    )
    assert forced.choices[0].message.tool_calls


def test_penalties_bias_and_min_p_are_felt(client):
    assert ask(client, logit_bias={"65": 100}, max_tokens=3, logprobs=True).choices[0].logprobs.content[0].logprob < -1
    plain, penalized = (
        ask(client, temperature=0, max_tokens=60, frequency_penalty=penalty).choices[0].message.content
        for penalty in (0.0, 2.0)
    )
    assert plain != penalized
    filtered = ask(client, logprobs=True, extra_body={"min_p": 1.0, "filtered_logprobs": True})
    entries = filtered.choices[0].logprobs.content
    assert all(entry.filtered_logprob == 0 > entry.logprob for entry in entries)


def test_tokens_inside_characters_show_their_bytes(client):
    fields = {"logprobs": True, "top_logprobs": 5, "extra_body": {"seed": 1, "regex": "é☃"}}
    entries = ask(client, **fields).choices[0].logprobs.content
    assert b"".join(bytes(entry.bytes) for entry in entries[:5]) == "é☃".encode()
    assert entries[0].token == r"bytes:\xc3"
    streamed = [e for c in asked_live(client, **fields) if c.logprobs for e in c.logprobs.content]
    assert streamed == entries


def asked_live(client, **fields):
    return [choice for event in ask(client, stream=True, **fields) for choice in event.choices]


def test_tokens_inside_characters_have_names_and_places_of_their_own(client):
    fields = {"model": "tiny", "prompt": "ab", "max_tokens": 8, "seed": 1, "logprobs": 5}
    fields |= {"extra_body": {"regex": "aé☃b"}}
    whole = client.completions.create(**fields).choices[0]
    assert whole.text == "aé☃b"
    found = whole.logprobs
    assert found.tokens[:7] == ["a", *(rf"bytes:\x{byte:02x}" for byte in "é☃".encode()), "b"]
    assert found.text_offset[:7] == [0, 1, 1, 2, 2, 2, 3]
    assert all(len(top) == 5 for top in found.top_logprobs)
    live = [event.choices[0].logprobs for event in client.completions.create(**fields, stream=True)]
    for field in ("tokens", "text_offset", "top_logprobs", "token_logprobs"):
        assert [one for part in live if part for one in getattr(part, field)] == getattr(found, field)
    echoed = client.completions.create(**fields | {"prompt": "é☃", "echo": True}).choices[0].logprobs
    assert echoed.text_offset[:12] == [0, 0, 1, 1, 1, 2, 3, 3, 4, 4, 4, 5]


def test_the_smallest_temperature_draws_what_is_likeliest(client):
    cold, greedy = (ask(client, temperature=temperature).choices[0].message.content for temperature in (1e-6, 0))
    assert cold == greedy


def test_top_logprobs_contain_what_greedy_draws(client):
    answer = ask(client, temperature=0, logprobs=True, top_logprobs=3)
    for entry in answer.choices[0].logprobs.content:
        assert entry.token in [top.token for top in entry.top_logprobs]
        assert len(entry.top_logprobs) == 3


def test_a_stream_carries_its_log_probabilities(client):
    fields = {"logprobs": True, "top_logprobs": 2}
    whole = [entry.logprob for entry in ask(client, **fields).choices[0].logprobs.content]
    seen = [
        entry.logprob
        for chunk in ask(client, stream=True, **fields)
        for choice in chunk.choices
        if choice.logprobs
        for entry in choice.logprobs.content
    ]
    assert seen == whole


def test_completions_take_several_prompts_and_echo(client):
    one = client.completions.create(model="tiny", prompt="ab", max_tokens=4, seed=1, echo=True, logprobs=2)
    assert one.choices[0].text.startswith("ab")
    assert one.choices[0].logprobs.token_logprobs[0] is None
    assert one.choices[0].logprobs.top_logprobs[0] is None
    n_prompt = one.usage.prompt_tokens
    assert np.isfinite(one.choices[0].logprobs.token_logprobs[1:]).all()
    assert len(one.choices[0].logprobs.tokens) == n_prompt + 4
    many = client.completions.create(model="tiny", prompt=["ab", "cd"], max_tokens=4, n=2, seed=1)
    assert [choice.index for choice in many.choices] == [0, 1, 2, 3]
    parts = dict.fromkeys(range(4), "")
    for chunk in client.completions.create(model="tiny", prompt=["ab", "cd"], max_tokens=4, n=2, seed=1, stream=True):
        parts[chunk.choices[0].index] += chunk.choices[0].text
    assert [parts[index] for index in range(4)] == [choice.text for choice in many.choices]


def test_a_prompt_is_scored_without_a_token_more(client):
    """As evaluation harnesses do it."""
    asked = {"model": "tiny", "prompt": ["The quick brown", "fox"], "echo": True, "logprobs": 1}
    bare, longer = (client.completions.create(**asked, max_tokens=n, temperature=0).choices for n in (0, 1))
    for short, long in zip(bare, longer, strict=True):
        assert short.logprobs.token_logprobs[0] is None
        assert short.logprobs.token_logprobs == long.logprobs.token_logprobs[:-1]
        assert long.text.startswith(short.text)


def test_top_p_0_draws_what_is_likeliest(client):
    asked = {"model": "tiny", "prompt": "The quick", "max_tokens": 12}
    drawn, likeliest = (client.completions.create(**asked, **how) for how in ({"top_p": 0}, {"temperature": 0}))
    assert drawn.choices[0].text == likeliest.choices[0].text


def test_responses_whole_and_streamed(client):
    fields = {"model": "tiny", "input": "hello", "instructions": "be kind", "max_output_tokens": 6, "seed": 1}
    extra = {"extra_body": {"seed": fields.pop("seed")}}
    whole = client.responses.create(**fields, **extra)
    assert (whole.status, whole.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    kinds, text = [], ""
    for event in client.responses.create(**fields, **extra, stream=True):
        kinds.append(event.type)
        text += event.delta if event.type == "response.output_text.delta" else ""
    assert text == whole.output_text
    assert (kinds[0], kinds[-1]) == ("response.created", "response.incomplete")


def test_responses_call_tools_and_take_their_results(client):
    tool = {"type": "function", "name": "weather", "parameters": WEATHER, "strict": True}
    fields = {"model": "tiny", "tools": [tool], "tool_choice": "required", "parallel_tool_calls": False}
    with client.responses.stream(input="hello", **fields) as stream:
        for _ in stream:
            pass
        answer = stream.get_final_response()
    (call,) = [item for item in answer.output if item.type == "function_call"]
    assert json.loads(call.arguments)["city"] in ("Oslo", "Rome")
    history = [{"role": "user", "content": "hello"}, *answer.output]
    history.append({"type": "function_call_output", "call_id": call.call_id, "output": "rain"})
    after = client.responses.create(model="tiny", input=history, max_output_tokens=4)
    plain = client.responses.create(model="tiny", input="hello", max_output_tokens=4)
    assert after.usage.input_tokens > plain.usage.input_tokens


def test_responses_are_parsed_into_a_model_and_into_arguments(client):
    parsed = client.responses.parse(model="tiny", input="hello", text_format=Place, max_output_tokens=100)
    assert isinstance(parsed.output_parsed, Place)
    tool = openai.pydantic_function_tool(Place)
    called = client.responses.parse(
        model="tiny", input="hello", tools=[tool], tool_choice="required", parallel_tool_calls=False
    )
    (call,) = called.output
    assert isinstance(call.parsed_arguments, Place)


def test_refusals_name_what_is_wrong(client):
    with pytest.raises(openai.BadRequestError, match="Embeddings are not served"):
        client.embeddings.create(model="tiny", input="x")
    with pytest.raises(openai.NotFoundError, match="Did you mean"):
        ask(client, model="tinny")
    with pytest.raises(openai.BadRequestError, match="web_search_options"):
        ask(client, extra_body={"web_search_options": {}})


def test_the_asynchronous_client_streams_side_by_side(server):
    async def scene():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=server.key) as client:

            async def one(seed):
                text = ""
                async for chunk in await client.chat.completions.create(
                    model="tiny", messages=CHAT, max_tokens=16, seed=seed, stream=True
                ):
                    text += chunk.choices[0].delta.content or ""
                return text

            together = await asyncio.gather(*(one(seed) for seed in range(8)))
            return together, [await one(seed) for seed in range(8)]

    together, alone = asyncio.run(scene())
    assert len(set(together)) > 4
    assert together == alone


def test_a_grammar_made_to_hurt_is_refused_while_others_are_served(client):
    words = " & ".join(rf"/(.|\n)*w{i}(.|\n)*/" for i in range(40))
    with ask(client, max_tokens=400, stream=True) as stream:
        next(stream)
        with pytest.raises(openai.BadRequestError, match="to prepare"):
            ask(client, extra_body={"grammar": f"start: X\nX: {words}"})
        assert sum(1 for _ in stream) > 10
    assert ask(client).choices

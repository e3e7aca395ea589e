"""Images in chat, by the clients of three dialects: through the model's own template, counted, or refused."""

import base64

import anthropic
import openai
import pytest

from loreloop.cli.server import RunningServer
from tests.tiny_vision import picture

CAT = picture(64, 96, seed=1)
N_CAT = 6


def url(data: bytes = CAT, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def seen(address: str) -> dict:
    return {"type": "image_url", "image_url": {"url": address}}


def said(text: str) -> dict:
    return {"type": "text", "text": text}


@pytest.fixture
def client(seeing: RunningServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{seeing.url}/v1", api_key=seeing.key, max_retries=0)


@pytest.fixture
def claude(seeing: RunningServer) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=f"{seeing.url}/anthropic/api", api_key=seeing.key, max_retries=0)


def ask(client: openai.OpenAI, *content: dict, **fields):
    messages = fields.pop("messages", [{"role": "user", "content": list(content)}])
    usual = {"model": "eyes", "max_tokens": 6, "temperature": 0, "seed": 1}
    return client.chat.completions.create(messages=messages, **usual | fields)


def test_an_image_changes_the_answer_and_counts(client):
    plain = ask(client, said("what is it?"))
    answer = ask(client, said("what is it?"), seen(url()))
    assert answer.usage.prompt_tokens == plain.usage.prompt_tokens + N_CAT + 2
    other = ask(client, said("what is it?"), seen(url(picture(64, 96, seed=2))), logprobs=True)
    again = ask(client, said("what is it?"), seen(url()), logprobs=True)
    assert again.choices[0].message.content == answer.choices[0].message.content
    first = (choice.logprobs.content[0].logprob for choice in (*other.choices, *again.choices))
    assert len(set(first)) == 2
    hit, other_hit = (answer.usage.prompt_tokens_details.cached_tokens for answer in (again, other))
    assert hit >= other_hit + N_CAT


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_formats_streams_and_several_images(client, format):
    data = url(picture(64, 96, format=format), f"image/{format}")
    chunks = ask(client, seen(data), said("or"), seen(data), stream=True, stream_options={"include_usage": True})
    assert list(chunks)[-1].usage.prompt_tokens > 2 * N_CAT


def test_an_image_is_the_same_however_its_bytes_are_written(client, claude):
    code = base64.b64encode(CAT).decode()
    wrapped = "".join(f"{code[at : at + 76]}\r\n" for at in range(0, len(code), 76))
    written = [
        url(),
        f"data:image/png;base64,{wrapped}",
        f"DATA:image/PNG;charset=utf-8;Base64,{code}",
        f"data:image/png;base64,{code.replace('+', '%2B').replace('/', '%2F').replace('=', '%3D')}",
        f"data:image/png;base64,{code.rstrip('=')}",
    ]
    answers = [ask(client, said("what?"), seen(address)) for address in written]
    assert len({answer.choices[0].message.content for answer in answers}) == 1
    assert len({answer.usage.prompt_tokens for answer in answers}) == 1
    source = {"type": "base64", "media_type": "image/png", "data": wrapped}
    messages = [{"role": "user", "content": [said("what?"), {"type": "image", "source": source}]}]
    counted = claude.messages.count_tokens(model="eyes", messages=messages).input_tokens
    assert counted == answers[0].usage.prompt_tokens


def test_a_tools_result_may_be_an_image(client, claude):
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    history = [
        {"role": "user", "content": "look"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": [said("here: "), seen(url())]},
    ]
    blind = [*history[:2], {"role": "tool", "tool_call_id": "c", "content": "here: "}]
    shown, plain = (ask(client, messages=messages).usage.prompt_tokens for messages in (history, blind))
    assert shown == plain + N_CAT + 2
    block = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": url().split(",")[1]}}
    result = {"type": "tool_result", "tool_use_id": "c", "content": [block]}
    use = {"type": "tool_use", "id": "c", "name": "look", "input": {}}
    messages = [
        {"role": "user", "content": "look"},
        {"role": "assistant", "content": [use]},
        {"role": "user", "content": [result]},
    ]
    answer = claude.messages.create(model="eyes", max_tokens=4, messages=messages)
    counted = claude.messages.count_tokens(model="eyes", messages=messages)
    assert answer.usage.input_tokens + answer.usage.cache_read_input_tokens == counted.input_tokens > N_CAT


def test_responses_and_messages_see_the_same(client, claude):
    content = [{"type": "input_text", "text": "what?"}, {"type": "input_image", "image_url": url(), "detail": "auto"}]
    usual = {"model": "eyes", "max_output_tokens": 5, "temperature": 0}
    answer = client.responses.create(input=[{"role": "user", "content": content}], **usual)
    block = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": url().split(",")[1]}}
    message = {"role": "user", "content": [{"type": "text", "text": "what?"}, block]}
    other = claude.messages.create(model="eyes", max_tokens=5, messages=[message], extra_body={"temperature": 0})
    assert other.content[0].text == answer.output_text
    assert answer.usage.input_tokens == ask(client, said("what?"), seen(url())).usage.prompt_tokens


REFUSED = {
    "not base64": (seen("data:image/png;base64,%%%"), "base64 is broken"),
    "no media type": (seen("data:,hello"), "data:image/png;base64"),
    "another format": (seen(url(media_type="image/jpeg")), "said to be 'jpeg', but its bytes are png"),
    "half of it": (seen(url(CAT[:900])), "cannot be decoded"),
    "a file": (seen("file:///etc/passwd"), "not asked for by this server"),
    "an unknown host": (seen("https://example.org/cat.png"), "not asked for by this server"),
    "the template's mark": (said("<|image_pad|>"), "1 places for 0 images"),
    "too many pixels together": (
        [seen(url(picture(900, 900, seed=seed, format="jpeg"), "image/jpeg")) for seed in range(3)],
        "2000000 pixels together",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_seen_is_refused(client, name):
    content, words = REFUSED[name]
    with pytest.raises(openai.BadRequestError, match=words):
        ask(client, *(content if isinstance(content, list) else [content]))


def test_a_model_that_reads_text_only_says_so(client, claude):
    with pytest.raises(openai.BadRequestError, match="blind reads text only"):
        ask(client, seen(url()), model="blind")
    block = {"type": "image", "source": {"type": "url", "url": "https://example.org/cat.png"}}
    with pytest.raises(anthropic.BadRequestError, match="blind reads text only"):
        claude.messages.create(model="blind", max_tokens=4, messages=[{"role": "user", "content": [block]}])


def test_addresses_of_allowed_hosts(client, web):
    assert ask(client, seen(f"{web}/good")).usage.prompt_tokens > 4
    for path in ("moved", "gone", "huge"):
        with pytest.raises(openai.BadRequestError, match=f"{path}' gave no image in time"):
            ask(client, seen(f"{web}/{path}"))
    with pytest.raises(openai.BadRequestError, match="not asked for"):
        ask(client, seen(f"{web.replace('127.0.0.1', 'localhost')}/good"))

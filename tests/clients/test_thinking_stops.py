"""A model whose prompt opens a thought, over a live server: a stop string in the thought ends nothing."""

from collections.abc import Iterator

import anthropic
import openai
import pytest

from loreloop.cli.server import RunningServer, running_server
from tests.tiny import make_tiny_model, make_tokenizer

OPENING = "{% for m in messages %}{{ m.content }}\n{% endfor %}<think>"


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    data = tmp_path_factory.mktemp("data")
    make_tokenizer(make_tiny_model(data / "models" / "tiny", "qwen3"), 512, template=OPENING)
    settings = ["--model", "tiny", "--precision", "fp32", "--threads", "1", "--deterministic"]
    with running_server(str(data), settings) as running:
        yield running


def test_a_stop_string_in_a_thought_ends_nothing(thinker: RunningServer) -> None:
    client = openai.OpenAI(base_url=f"{thinker.url}/v1", api_key=thinker.key, max_retries=0)
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 24, "temperature": 0}
    plain = client.chat.completions.create(**asked)  # type: ignore[call-overload]
    thought = plain.choices[0].message.reasoning_content
    assert len(thought) > 6
    stopped = client.chat.completions.create(**asked, stop=thought[2:5])  # type: ignore[call-overload]
    assert stopped.choices[0].message.reasoning_content == thought
    assert stopped.choices[0].finish_reason == plain.choices[0].finish_reason == "length"
    chunks = client.chat.completions.create(**asked, stop=thought[2:5], stream=True)  # type: ignore[call-overload]
    assert "".join(getattr(chunk.choices[0].delta, "reasoning_content", "") or "" for chunk in chunks) == thought
    claude = anthropic.Anthropic(base_url=f"{thinker.url}/anthropic/api", api_key=thinker.key, max_retries=0)
    greedy = {"temperature": asked.pop("temperature")}
    message = claude.messages.create(**asked, stop_sequences=[thought[2:5]], extra_body=greedy)  # type: ignore
    assert (message.stop_reason, message.content[0].thinking) == ("max_tokens", thought)

"""A vision model learns from a file with images; its prompts are those of the chat route."""

import asyncio
import base64
import json
from typing import Any

import openai
import pytest
import tinker

from loreloop.cli.server import RunningServer
from loreloop.learn import methods
from loreloop.learn.files import demonstrations
from loreloop.learn.methods import Keeping, Order, train
from loreloop.learn.plan import Plan
from loreloop.learn.rendering import renderer_of
from loreloop.learn.runner import StepRecord
from loreloop.learn.settings import SftSettings
from loreloop.protocol.errors import BadRequest
from tests.learn.runs import Kept
from tests.tiny_vision import picture

# The SDK leaves its own background tasks to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore")


def url(seed: int, width: int) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture(width, 64, seed=seed)).decode()}"


def line(seed: int, width: int, word: str) -> dict[str, Any]:
    parts = [{"type": "text", "text": "what is"}, {"type": "image_url", "image_url": {"url": url(seed, width)}}]
    return {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": word}]}


LINES = [line(1, 64, "the fox"), line(2, 96, "the dog")]


def order(server: RunningServer, model: str) -> Order:
    return Order(
        method="sft",
        plan=Plan(base_model=model, rank=8, epochs=20, batch_size=2, learning_rate=1e-2, schedule="constant"),
        settings=SftSettings(),
        renderer=renderer_of(server.data / "models" / model),
        examples=list(demonstrations(json.dumps(each) for each in LINES)),
    )


def test_images_are_learned_from(seeing: RunningServer) -> None:
    records: list[StepRecord] = []
    with tinker.ServiceClient(base_url=seeing.url, api_key=seeing.key) as service:
        ended = asyncio.run(train(order(seeing, "eyes"), service, Keeping(Kept(), records.append)))
    assert ended == "finished"
    assert records[-1].metrics["train_loss"] < 0.1 * records[0].metrics["train_loss"]


def test_a_prompt_has_the_length_that_the_chat_route_tells(seeing: RunningServer) -> None:
    made = order(seeing, "eyes")
    with tinker.ServiceClient(base_url=seeing.url, api_key=seeing.key) as service:
        renderer = asyncio.run(methods.seeing(made, service))
    client = openai.OpenAI(base_url=f"{seeing.url}/v1", api_key=seeing.key)
    for example, body in zip(made.examples, LINES, strict=True):
        asked = client.chat.completions.create(model="eyes", messages=body["messages"][:1], max_tokens=1)
        assert asked.usage is not None
        (datum,) = renderer.demonstrations(example)
        n_learned = int((datum.loss_fn_inputs["weights"].to_numpy() > 0).sum())
        assert datum.model_input.length + 1 - n_learned == asked.usage.prompt_tokens


def test_a_model_of_text_names_the_example(seeing: RunningServer) -> None:
    with (
        tinker.ServiceClient(base_url=seeing.url, api_key=seeing.key) as service,
        pytest.raises(BadRequest, match="Example 1: This model reads text only"),
    ):
        asyncio.run(train(order(seeing, "blind"), service, Keeping(Kept(), lambda record: None)))

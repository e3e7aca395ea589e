"""A last message of the assistant, which the answer goes on from, in Anthropic's words."""

from typing import Any

import msgspec
import pytest

from loreloop.http.anthropic.messages import chat_request_of
from loreloop.http.bodies import decode_as_sent
from loreloop.protocol.anthropic_rest import CountTokens
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.rest import WireSamplingParams
from loreloop.text.conversation import Conversation

IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}


def conversation_of(*last: dict[str, Any]) -> Conversation:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": last}]
    body = decode_as_sent(msgspec.json.encode({"model": "m", "messages": messages}), CountTokens)
    return chat_request_of(body, WireSamplingParams(), stream=False).conversation


def test_its_thought_is_carried_along() -> None:
    thinking = {"type": "thinking", "thinking": "hm", "signature": "x"}
    found = conversation_of(thinking, {"type": "text", "text": "Sure"})
    assert ([turn.role for turn in found.turns], found.begun, found.thought) == (["user"], "Sure", "hm")
    assert conversation_of(thinking).thought == "hm"


def test_it_holds_no_images() -> None:
    with pytest.raises(BadRequest, match="holds an image"):
        conversation_of(IMAGE, {"type": "text", "text": "Sure"})

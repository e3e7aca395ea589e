"""A served model as a judge: a grader's question is answered as the key that sent the request.

Knows no dialect, and not what is judged.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request

from loreloop.http.generation.chat import ChatRequest, chat_with_images, whole_reply
from loreloop.http.generation.requests import all_drawn, find_model
from loreloop.http.services import TRAIN, caller, services
from loreloop.learn.rewards.graders.grader import Chat, GraderTrouble, Means, Question, Said
from loreloop.protocol.errors import LoreloopError
from loreloop.protocol.rest import WireSamplingParams
from loreloop.protocol.token_ids import n_ids, unpack_ids
from loreloop.protocol.training import length_of
from loreloop.text.conversation import Conversation
from loreloop.text.templates.generation_defaults import DEFAULTED


def means_of(request: Request) -> Means:
    """What graders may use in the name of this request."""
    served = services(request)
    grading = served.grading
    return Means(
        sandbox=grading.sandbox,
        chat=chat_of(request),
        embed=grading.embed,
        limits=grading.limits,
        asker=caller(request, TRAIN).id,
    )


def chat_of(request: Request) -> Chat:
    """Asks served models in the name of the request's key. What a model cannot be asked is trouble of the grader."""
    return partial(_asked, request)


async def _asked(request: Request, question: Question) -> Said:
    try:
        return await _said(request, question)
    except LoreloopError as error:
        raise GraderTrouble("model_grader_server", error.message) from error


async def _said(request: Request, question: Question) -> Said:
    served = services(request)
    model = await find_model(request, question.model)
    sampling = {"temperature": question.temperature, "top_p": question.top_p}
    given = {name: value for name, value in sampling.items() if value is not None}
    schema = dict(question.schema) if question.schema else None
    wire = WireSamplingParams(max_tokens=question.max_tokens, seed=question.seed, json_schema=schema)
    wire = msgspec.structs.replace(wire, **given)
    conversation = Conversation(question.turns, settings=_thinking(question.effort))
    chat_request = ChatRequest(conversation, wire, left_open=frozenset(DEFAULTED) - given.keys())
    chat = await chat_with_images(served.pictures, model, chat_request)
    (result,) = await all_drawn(served, model, [chat.op])
    (sequence,) = result.sequences
    reply = whole_reply(chat, unpack_ids(sequence.tokens).tolist())
    return Said(reply.content, length_of(chat.op.prompt) + n_ids(sequence.tokens))


def _thinking(effort: str | None) -> dict[str, Any]:
    """The two ways in which templates are told how much to think."""
    return {} if effort is None else {"reasoning_effort": effort, "enable_thinking": effort != "none"}

"""OpenAI's chat completions in words: a body to a chat, a reply's pieces to messages and deltas. Pure.

Not of OpenAI: `reasoning_content` beside the content, and `warning` where a tool call was broken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from loreloop.http.generation.chat import Chat, ChatRequest, finish_of, left_open, whole_reply
from loreloop.http.generation.recording import TurnRecording
from loreloop.http.generation.remembered import Remembering
from loreloop.http.generation.requests import Report
from loreloop.http.openai.answer_format import frame, is_strict, schema_of, usage, wire_params
from loreloop.http.openai.logprobs import Scored, chat_logprobs, scored_sequence, scored_token
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.link import Token
from loreloop.protocol.openai_rest import (
    ChatCompletion,
    NamedTool,
    ToolBody,
)
from loreloop.protocol.rest import WireSamplingParams
from loreloop.protocol.sampling import SampledSequence, SampleResult
from loreloop.text.conversation import Conversation, Turn
from loreloop.text.openai_messages import tool_of, turn_of
from loreloop.text.replies import BROKEN_CALL, CUT_CALL, WholeReply, new_call_id
from loreloop.text.tools.tool_calls import (
    Broken,
    CallArguments,
    CallBegins,
    CallCut,
    CallEnds,
    Content,
    Piece,
    Thinking,
)

# from the body


def chat_request_of(body: ChatCompletion) -> ChatRequest:
    """The chat that a body asks for. BadRequest where its fields do not fit together."""
    settings = dict(body.chat_template_kwargs or {})
    if body.reasoning_effort is not None:
        # Templates know two ways to turn thoughts off, and each reads only its own variable.
        settings |= {"reasoning_effort": body.reasoning_effort, "enable_thinking": body.reasoning_effort != "none"}
    if body.top_logprobs and not body.logprobs:
        raise BadRequest("top_logprobs needs logprobs: true beside it.")
    turns = tuple(turn_of(message) for message in body.messages)
    tools = tuple(tool_of(tool) for tool in body.tools or () if isinstance(tool, ToolBody))
    # A client of OpenAI's service may send such tools by habit; it must not wait for calls that nobody makes.
    if body.agent_loop is None and len(tools) < len(body.tools or ()):
        raise BadRequest("Tools of type 'mcp' are called by the server itself; opt in with agent_loop: {}.")
    wire = formatted(body, wire_params(body, body.max_completion_tokens or body.max_tokens))
    choice = body.tool_choice or "auto"
    return ChatRequest(
        conversation=Conversation(turns, tools, settings),
        wire=wire,
        choice=f"={choice.function.name}" if isinstance(choice, NamedTool) else choice,
        parallel=body.parallel_tool_calls is not False,
        n=body.n or 1,
        stream=bool(body.stream),
        report=Report(body.top_logprobs or 0, bool(body.filtered_logprobs)),
        left_open=left_open(body),
        strict=is_strict(body.response_format),
    )


def formatted(body: ChatCompletion, wire: WireSamplingParams) -> WireSamplingParams:
    """With the response format as a schema."""
    return msgspec.structs.replace(wire, json_schema=schema_of(body.response_format))


# to the answer


@dataclass(frozen=True)
class PendingAnswer:
    """A checked request, from which every part of its answer is made; `created` is in seconds since the epoch."""

    body: ChatCompletion
    chat: Chat
    created: int
    memory: Remembering
    recording: TurnRecording

    def frame(self, kind: str) -> dict[str, Any]:
        """The fields that open an answer or a chunk of this request."""
        opened = frame("chatcmpl", kind, self.chat.op, self.body.model, self.created, self.chat.model)
        return opened | self.recording.told

    @property
    def id(self) -> str:
        """The id of the completion."""
        return f"chatcmpl-{self.chat.op.request_id.removeprefix('gen-')}"

    async def whole(self, results: Sequence[SampleResult]) -> dict[str, Any]:
        """The whole answer, with a choice for every sample and the usage."""
        (result,) = results
        choices = [self.choice(index, sequence) for index, sequence in enumerate(result.sequences)]
        told = {"choices": choices, "usage": usage([self.chat.op], [result])} | await self.memory.keep()
        return self.frame("chat.completion") | told

    def choice(
        self, index: int, sequence: SampledSequence, read: WholeReply | None = None, made: tuple[Turn, ...] = ()
    ) -> dict[str, Any]:
        """One sample as a whole choice, with its message and its log-probabilities where they were asked for. A reply
        that was `read` already is not read again: its calls would get other ids. `made` are calls and results before
        it."""
        # The reply is read from the same tokens that are scored, so both lists have the same length.
        scored = scored_sequence(sequence)
        reply = read or whole_reply(self.chat, [one.token for one in scored])
        finish = finish_of(sequence, makes_calls=bool(reply.calls) and not reply.cut)
        self.recording.keep(index, sequence, reply, made)
        return {
            "index": index,
            "message": message_of(reply),
            "finish_reason": finish,
            "logprobs": self.logprobs(scored),
        }

    def logprobs(self, scored: Sequence[Scored]) -> dict[str, Any] | None:
        """Log-probabilities of these tokens; None where nobody asked for them."""
        return chat_logprobs(scored, self.chat.model.text.tokenizer) if self.body.logprobs else None


def message_of(reply: WholeReply) -> dict[str, Any]:
    """A whole reply as an assistant's message."""
    message: dict[str, Any] = {"role": "assistant", "content": reply.content, "refusal": None}
    if reply.thinking:
        message["reasoning_content"] = reply.thinking
    if reply.calls:
        # OpenAI's clients expect null and not an empty text beside calls.
        message["content"] = reply.content or None
        message["tool_calls"] = [
            {
                "id": call.call_id or new_call_id(),
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in reply.calls
        ]
    if reply.warning:
        message["warning"] = reply.warning
    return message


class StreamedReply:
    """One sample of a stream: log-probabilities leave with the next delta after them."""

    def __init__(self, pending: PendingAnswer, index: int) -> None:
        self.pending, self.index, self.reply = pending, index, pending.chat.reply()
        self.waiting: list[Scored] = []
        self.n_calls, self.cut = 0, False

    def begin(self) -> dict[str, Any]:
        """The first chunk, which holds the role alone."""
        return self._event({"role": "assistant", "content": ""}, None)

    def push(self, token: Token) -> list[dict[str, Any]]:
        """The chunks that one more token makes; often none, while its text may still change."""
        self.waiting.append(scored_token(token))
        pieces = self.reply.push(token.token)
        self.pending.recording.shown(self.index, token, pieces)
        return self._events(pieces)

    def end(self, sequence: SampledSequence) -> list[dict[str, Any]]:
        """The chunks that remain when the sample has ended; the last one says why it did."""
        pieces = self.reply.flush()
        self.pending.recording.ended(self.index, sequence, pieces)
        rest = self._events(pieces)
        return [
            *rest,
            self._event(
                last_delta(self.pending.chat), finish_of(sequence, makes_calls=self.n_calls > 0 and not self.cut)
            ),
        ]

    def _events(self, pieces: Sequence[Piece]) -> list[dict[str, Any]]:
        self.n_calls += sum(isinstance(piece, CallBegins) for piece in pieces)
        # A call that was cut off cannot be made, so the reason for the end must not be that there are calls.
        self.cut |= any(isinstance(piece, CallCut) for piece in pieces)
        return [self._event(delta, None) for piece in pieces if (delta := delta_of(piece))]

    def _event(self, delta: dict[str, Any], finish: str | None) -> dict[str, Any]:
        # Tokens whose text was held back wait here; the next delta carries the log-probabilities of all of them.
        scored, self.waiting = self.waiting, []
        logprobs = self.pending.logprobs(scored) if scored else None
        choice = {"index": self.index, "delta": delta, "finish_reason": finish, "logprobs": logprobs}
        return self.pending.frame("chat.completion.chunk") | {"choices": [choice]}


def last_delta(chat: Chat) -> dict[str, Any]:
    """The delta of the last chunk: empty, or a warning about what could not be held."""
    return {"warning": chat.warning} if chat.warning else {}


def delta_of(piece: Piece) -> dict[str, Any]:
    """A piece of a reply as a delta; empty for pieces that OpenAI's stream has no words for."""
    match piece:
        case Content(text):
            return {"content": text}
        case Thinking(text):
            return {"reasoning_content": text}
        case CallBegins(index, call_id, name):
            function = {"name": name, "arguments": ""}
            call = {"index": index, "id": call_id or new_call_id(), "type": "function", "function": function}
            return {"tool_calls": [call]}
        case CallArguments(index, text):
            return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
        case Broken(text):
            return {"content": text, "warning": BROKEN_CALL}
        case CallCut():
            return {"warning": CUT_CALL}
        case CallEnds():
            return {}

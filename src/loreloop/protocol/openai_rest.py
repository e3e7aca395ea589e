"""Bodies of OpenAI's API as far as they are served.

A field that is neither here nor in `hints.py` is refused by name, never ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from loreloop.protocol.rest import Penalty

MAX_TURNS, MAX_TOOLS = 8192, 512  # of one request; each costs time before any token is computed
MaxTokens = Annotated[int, Meta(ge=1, lt=1 << 31)]
TopP = Annotated[float, Meta(ge=0, le=1)]  # 0: the likeliest token
TokenId = Annotated[int, Meta(ge=0, lt=1 << 31)]
TopLogprobs = Annotated[int, Meta(ge=0, le=20)]


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A body whose unknown fields are errors."""


class StreamOptions(Strict, frozen=True):
    """`include_usage` asks for a last chunk that holds the numbers of tokens."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # nothing is obscured either way


class GraderCheck(Strict, frozen=True):
    """A grader to be checked; its own fields are those of `learn/rewards/graders`."""

    grader: dict[str, Any]


class GraderRun(GraderCheck, frozen=True):
    """A grader and what it shall grade: a model's text, and the item that the text answers."""

    model_sample: str
    item: dict[str, Any] | None = None


TurnTime = Annotated[float, Meta(ge=0, lt=1e11)]  # seconds since 1970


class MemoryField(Strict, frozen=True):
    """Which memory stands in the place of the past; `budget_tokens` are needed where it begins.

    `pin` keeps the user's new messages word for word. `time` is when the new messages were said, in seconds since 1970,
    or a list of times, one for each message that is no instruction. `captions` are of the request's images, in order.
    """

    id: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:@-]{0,199}\Z")]
    budget_tokens: Annotated[int, Meta(ge=1, lt=1 << 31)] | None = None
    pin: bool = False
    time: TurnTime | tuple[TurnTime | None, ...] | None = None
    captions: tuple[Annotated[str, Meta(max_length=2000)], ...] = ()


class Common(Strict, frozen=True):
    """What both sampling routes take. `user` decides the arm of a deployment's canary.

    Not of OpenAI: `top_k`, `min_p`, `repetition_penalty`, `grammar` (Lark), `regex`, `filtered_logprobs`.
    """

    model: str
    temperature: Annotated[float, Meta(ge=0, le=10)] | None = None
    top_p: TopP | None = None
    top_k: Annotated[int, Meta(ge=-1, lt=1 << 31)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(ge=0.01, le=100)] | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    seed: int | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    stop: str | tuple[str, ...] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    grammar: str | None = None
    regex: str | None = None
    filtered_logprobs: bool | None = None
    user: str | None = None


Prompt = str | tuple[str, ...] | tuple[TokenId, ...] | tuple[tuple[TokenId, ...], ...]


class Completion(Common, frozen=True, kw_only=True):
    """`prompt` is a text, token ids, or a list of either; with `max_tokens` 0 nothing is added to it."""

    # One kind of list for all that may stand in it, since msgspec takes at most one array in a union.
    prompt: str | tuple[str | TokenId | tuple[TokenId, ...], ...]
    max_tokens: Annotated[int, Meta(ge=0, lt=1 << 31)] | None = None
    logprobs: TopLogprobs | None = None
    echo: bool | None = None


class TextPart(Strict, frozen=True, tag="text"):
    """A piece of a message's content that is text."""

    text: str


class RefusalPart(Strict, frozen=True, tag="refusal"):
    """A piece of an earlier answer in which a model declined, handed back; it is read as text."""

    refusal: str


class ImageUrl(Strict, frozen=True):
    """Where an image is: a `data:` URL with its bytes, or the address of a host that the settings allow."""

    url: str


class ImagePart(Strict, frozen=True, tag="image_url"):
    """A piece of a message's content that is an image."""

    image_url: ImageUrl


ContentPart = TextPart | RefusalPart | ImagePart


class FunctionCall(Strict, frozen=True):
    """The function of an earlier call; `arguments` is the text of a JSON object."""

    name: str
    arguments: str | None = None


class ToolCallBody(Strict, frozen=True):
    """A call in an earlier answer, handed back; the tool's message refers to it by `id`."""

    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class ChatMessage(Strict, frozen=True):
    """`reasoning_content` (or `reasoning`) is what an earlier answer thought, handed back."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | tuple[ContentPart, ...] | None = None
    name: str | None = None
    tool_calls: tuple[ToolCallBody, ...] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None


class FunctionBody(Strict, frozen=True):
    """A function that the model may call. `parameters` is the JSON schema of its arguments; with `strict` a grammar
    holds all of it, or the request is refused."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolBody(Strict, frozen=True, tag="function"):
    """A tool that the client itself executes."""

    function: FunctionBody


class McpTool(Strict, frozen=True, tag="mcp"):
    """All tools of a server that was registered with `loreloop tools add`."""

    server_label: str


class AgentLoop(Strict, frozen=True):
    """The server itself calls registered tools, within these bounds, until the model answers without a call."""

    max_calls: Annotated[int, Meta(ge=1, le=64)] = 8
    max_seconds: Annotated[float, Meta(gt=0, le=600)] = 60.0
    max_output_bytes: Annotated[int, Meta(ge=1, le=1 << 20)] = 65536


class NamedFunction(Strict, frozen=True):
    """The function that the answer must call."""

    name: str


class NamedTool(Strict, frozen=True):
    """The form of `tool_choice` that forces a call of one function."""

    function: NamedFunction
    type: Literal["function"] = "function"


ToolChoice = Literal["auto", "none", "required"] | NamedTool


class JsonSchemaBody(Strict, frozen=True):
    """The JSON schema that an answer must satisfy, called `schema` in JSON."""

    name: str = "answer"
    description: str | None = None
    schema_: dict[str, Any] = msgspec.field(default_factory=dict, name="schema")
    strict: bool | None = None


class TextFormat(Strict, frozen=True, tag="text"):
    """The answer may be any text, which is the default."""


class JsonObjectFormat(Strict, frozen=True, tag="json_object"):
    """The answer must be a JSON object, of whatever shape."""


class JsonSchemaFormat(Strict, frozen=True, tag="json_schema"):
    """The answer must be JSON that satisfies a schema."""

    json_schema: JsonSchemaBody


ResponseFormat = TextFormat | JsonObjectFormat | JsonSchemaFormat
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class ChatCompletion(Common, frozen=True, kw_only=True):
    """`chat_template_kwargs` go to the model's template as they are."""

    messages: Annotated[tuple[ChatMessage, ...], Meta(min_length=1, max_length=MAX_TURNS)]
    max_tokens: MaxTokens | None = None
    max_completion_tokens: MaxTokens | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    tools: Annotated[tuple[ToolBody | McpTool, ...], Meta(max_length=MAX_TOOLS)] | None = None
    agent_loop: AgentLoop | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: Effort | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    metadata: Any = None  # beside what clients file there, marks of a recorded turn
    memory: MemoryField | None = None  # this, `agent_loop`, `chat_template_kwargs` and `episode_id` are not of OpenAI
    episode_id: str | None = None

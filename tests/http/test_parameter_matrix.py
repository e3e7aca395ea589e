"""Each cell of the matrix in docs/clients.md: a served field has its effect, another one is refused by name."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest

from loreloop.host.tickets import Recording
from loreloop.protocol.anthropic_rest import Messages
from loreloop.protocol.as_sent import advice_of, neutral_of, notes_of
from loreloop.protocol.hints import ADVICE
from loreloop.protocol.openai_rest import ChatCompletion, Completion
from loreloop.protocol.responses_rest import CreateResponse
from loreloop.protocol.sampling import SampleOp, SamplingParams
from tests.http.site import Site, play

PAGE = (Path(__file__).parents[2] / "docs" / "clients.md").read_text()


def rows(name: str) -> list[list[str]]:
    """A table of the page between two marks."""
    lines = PAGE.split(f"<!-- {name}")[1].split(f"<!-- end of {name}")[0].splitlines()
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines if line[:3] == "| `"]


ROWS, NOTED = rows("matrix"), rows("notes")
KEPT = {"store", "previous_response_id", "episode_id"}  # in test_kept_responses.py and test_episodes.py
NEEDED = ("prompt", "messages", "input", "messages")
CHAT = [{"role": "user", "content": "11 12"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
ROUTES: list[tuple[str, type[msgspec.Struct], dict[str, Any]]] = [
    ("/v1/completions", Completion, {"prompt": "11 12", "max_tokens": 5}),
    ("/v1/chat/completions", ChatCompletion, {"messages": CHAT, "max_tokens": 5}),
    ("/v1/responses", CreateResponse, {"input": "11 12", "max_output_tokens": 20}),
    ("/anthropic/api/v1/messages", Messages, {"messages": CHAT, "max_tokens": 5}),
]
CHAT_TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
VALUES: dict[str, Any] = {
    "max_tokens": 3, "max_completion_tokens": 3, "max_output_tokens": 16, "temperature": 0.5, "top_p": 0.5, "top_k": 3,
    "min_p": 0.1, "presence_penalty": 1, "frequency_penalty": 1, "repetition_penalty": 1.1, "logit_bias": {"5": 1},
    "seed": 7, "n": 2, "stop": ["x"], "stop_sequences": ["x"], "stream": True,
    "stream_options": {"include_usage": True},
    "filtered_logprobs": True, "echo": True, "grammar": 'start: "11"', "regex": "1+",
    "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}},
    "text": {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}},
    "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": SCHEMA}},
    "parallel_tool_calls": False, "reasoning_effort": "low", "reasoning": {"effort": "low"},
    "thinking": {"type": "enabled", "budget_tokens": 1024}, "chat_template_kwargs": {"enable_thinking": False},
    "instructions": "11", "system": "11", "user": "u", "metadata": {"user_id": "u"}, "include": [],
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "memory": {"id": "ann", "budget_tokens": 64},
}  # fmt: skip
TOOLS: dict[str, Any] = {
    "/v1/chat/completions": [CHAT_TOOL],
    "/v1/responses": [{"type": "function", "name": "f", "parameters": SCHEMA}],
    "/anthropic/api/v1/messages": [{"name": "f", "input_schema": SCHEMA}],
}
BY_ROUTE: dict[str, dict[str, Any]] = {
    "/v1/completions": {"logprobs": 2},
    "/v1/chat/completions": {"logprobs": True, "tool_choice": "none", "agent_loop": {}},
    "/v1/responses": {"tool_choice": "none", "stream_options": {"include_obfuscation": False}},
    "/anthropic/api/v1/messages": {"tool_choice": {"type": "none"}},
}
# What must stand beside a field for it to have a meaning.
BESIDE: dict[str, dict[str, Any]] = {
    "stream_options": {"stream": True},
    "top_logprobs": {"logprobs": True},
}


@dataclass(frozen=True)
class Seen:
    """The operation that was sampled, that of the same request without the field, and the answer."""

    op: SampleOp
    bare: SampleOp
    answer: httpx.Response

    @property
    def prompt(self) -> list[int]:
        return words(self.op)

    @property
    def said(self) -> dict[str, Any]:
        return self.answer.json()


def words(op: SampleOp) -> list[int]:
    (chunk,) = op.prompt
    return np.frombuffer(chunk.tokens, "<i4").tolist()


def same(seen: Seen) -> bool:
    """A note of the caller: it changes nothing."""
    return msgspec.structs.replace(seen.op, request_id="") == msgspec.structs.replace(seen.bare, request_id="")


def is_schema(seen: Seen) -> bool:
    return '"a"' in seen.op.params.grammar and "integer" in seen.op.params.grammar


def params(**fields: Any) -> Callable[[Seen], bool]:
    return lambda seen: all(getattr(seen.op.params, name) == value for name, value in fields.items())


EFFECTS: dict[str, Callable[[Seen], bool]] = {
    "max_tokens": params(max_tokens=3),
    "max_completion_tokens": params(max_tokens=3),
    "max_output_tokens": params(max_tokens=16),
    "temperature": params(temperature=0.5),
    "top_p": params(top_p=0.5),
    "top_k": params(top_k=3),
    "min_p": params(min_p=0.1),
    "presence_penalty": params(presence_penalty=1),
    "frequency_penalty": params(frequency_penalty=1),
    "repetition_penalty": params(repetition_penalty=1.1),
    "logit_bias": params(logit_bias=((5, 1.0),)),
    "seed": params(seed=7),
    "n": lambda seen: seen.op.num_samples == 2 == len(seen.said["choices"]),
    "stop": params(stop_strings=("x",)),
    "stop_sequences": params(stop_strings=("x",)),
    "stream": lambda seen: seen.op.stream and seen.answer.headers["content-type"].startswith("text/event-stream"),
    "stream_options": lambda seen: seen.op.stream and ("total_tokens" in seen.answer.text),
    "logprobs": lambda seen: seen.said["choices"][0]["logprobs"] is not None,
    "top_logprobs": lambda seen: seen.op.topk_sample_logprobs == 2,
    "filtered_logprobs": lambda seen: seen.op.filtered_logprobs,
    "echo": lambda seen: seen.said["choices"][0]["text"].startswith("11 12"),
    "grammar": params(grammar='start: "11"'),
    "regex": lambda seen: "1+" in seen.op.params.grammar,
    "response_format": is_schema,
    "text": is_schema,
    "output_config": lambda seen: is_schema(seen) and seen.prompt[-1] == 23,
    "tools": lambda seen: len(seen.prompt) > len(words(seen.bare)) > 0 == len(seen.op.params.grammar),
    "tool_choice": lambda seen: len(seen.prompt) < len(words(seen.bare)),  # the tools are not told
    "agent_loop": lambda seen: seen.said["tool_trace"] == [],
    "parallel_tool_calls": lambda seen: "{0,7}" in seen.bare.params.grammar and "{0,7}" not in seen.op.params.grammar,
    "reasoning_effort": lambda seen: seen.prompt == [*words(seen.bare), 21, 23],
    "reasoning": lambda seen: seen.prompt == [*words(seen.bare), 21, 23],
    "thinking": lambda seen: seen.prompt == [*words(seen.bare), 21],
    "chat_template_kwargs": lambda seen: seen.prompt == [*words(seen.bare), 22],
    "instructions": lambda seen: seen.prompt == [11, *words(seen.bare)],
    "system": lambda seen: seen.prompt == [11, *words(seen.bare)],
    "user": same,
    "metadata": same,
    "include": same,
    "context_management": lambda seen: same(seen) and seen.said["context_management"] == {"applied_edits": []},
    "memory": lambda seen: same(seen) and seen.said["memory"]["turns"] == 2,
}


class Recorder:
    """Keeps the operations that a dispatcher hands to its engine."""

    def __init__(self, site: Site) -> None:
        self.site, self.ops, self.hand_in = site, list[SampleOp](), site.services.dispatcher.sample
        site.services.dispatcher.sample = self  # type: ignore[assignment,method-assign]

    def __call__(self, op: SampleOp, base_model: str, recording: Recording | None = None) -> bool:
        self.ops.append(op)
        return self.hand_in(op, base_model, recording)

    async def ask(self, route: str, body: dict[str, Any]) -> tuple[httpx.Response, SampleOp | None]:
        self.ops.clear()
        answer = await self.site.client.post(f"http://site{route}", json={"model": "fake"} | body)
        assert len(self.ops) == (answer.status_code == 200), (route, body, answer.text)
        return answer, self.ops[0] if self.ops else None


def beside(route: str, name: str) -> dict[str, Any]:
    """What stands in a request besides the field and what the route needs."""
    if name == "tool_choice":
        return {"tools": TOOLS[route], "seed": 1}
    if name == "parallel_tool_calls":
        return {"tools": TOOLS[route], "tool_choice": "required", "seed": 1}
    return BESIDE.get(name, {}) | ({"seed": 1} if name != "seed" else {})


@pytest.mark.parametrize("number", range(4), ids=[route for route, _, _ in ROUTES])
def test_each_cell_is_as_the_matrix_says(number: int) -> None:
    route, _, needed = ROUTES[number]

    async def scene(site: Site) -> None:
        recorder = Recorder(site)
        for name, *cells in ROWS:
            value = TOOLS.get(route, 2) if name == "tools" else BY_ROUTE[route].get(name, VALUES.get(name, 2))
            if cells[number] == "yes":
                around = needed | beside(route, name)
                _, bare = await recorder.ask(route, around if name in needed else without(around, name))
                answer, op = await recorder.ask(route, around | {name: value})
                assert answer.status_code == 200, (route, name, answer.text)
                assert bare is not None
                assert op is not None
                if not (name == "stream_options" and route == "/v1/responses"):  # it knows obfuscation only
                    assert EFFECTS[name](Seen(op, bare, answer)), (route, name, op)
                    assert name not in SAMPLING or not EFFECTS[name](Seen(bare, bare, answer)), (route, name)
            else:
                answer, _ = await recorder.ask(route, needed | {name: value})
                assert answer.status_code == 400, (route, name, answer.text)
                said = answer.json()["error"]["message"]
                assert re.search(rf"(?<![a-z_]){name}(?![a-z_])", said), (route, name, said)

    play(scene)


def without(body: dict[str, Any], name: str) -> dict[str, Any]:
    return {field: value for field, value in body.items() if field != name}


# A check of these must fail without the field, or it would show nothing.
SAMPLING = {field.name for field in msgspec.structs.fields(SamplingParams)} - {"max_tokens"}


@pytest.mark.parametrize("number", range(4), ids=[route for route, _, _ in ROUTES])
def test_every_field_stands_in_the_matrix(number: int) -> None:
    body = ROUTES[number][1]
    served = {name for name, *cells in ROWS if cells[number] == "yes"}
    fields = {field.encode_name for field in msgspec.structs.fields(body)}
    assert served <= fields | notes_of(body)
    assert fields - served - KEPT == {"model", NEEDED[number]}


@pytest.mark.parametrize("number", range(4), ids=[route for route, _, _ in ROUTES])
def test_each_note_passes_with_any_value_and_stands_on_the_page(number: int) -> None:
    route, body, needed = ROUTES[number]
    assert {name for name, *cells in NOTED if cells[number] == "yes"} == notes_of(body) - {"metadata"}

    async def scene(site: Site) -> None:
        recorder = Recorder(site)
        _, bare = await recorder.ask(route, needed | {"seed": 1})
        noted = {name: {"of": ["any", 1]} for name in notes_of(body)}
        answer, op = await recorder.ask(route, needed | {"seed": 1} | noted)
        assert op is not None
        assert bare is not None
        assert same(Seen(op, bare, answer))

    play(scene)


@pytest.mark.parametrize("number", range(4), ids=[route for route, _, _ in ROUTES])
def test_what_asks_for_nothing_passes_and_what_is_refused_says_what_to_do(number: int) -> None:
    route, body, needed = ROUTES[number]
    advised = {name for base in body.__mro__ for name in ADVICE.get(base, {})}

    async def scene(site: Site) -> None:
        recorder = Recorder(site)
        for name, values in neutral_of(body).items():
            for value in values:
                answer, _ = await recorder.ask(route, needed | {name: value})
                assert answer.status_code == 200, (name, value)
        for name in advised:
            answer, _ = await recorder.ask(route, needed | {name: {"some": "thing"}})
            said = answer.json()["error"]["message"]
            assert (answer.status_code, f"`{name}`" in said, advice_of(body, name) in said) == (400, True, True), said

    play(scene)

"""Every parameter that the installed `openai` and `anthropic` packages can send is decided on: it is a field of our
bodies, a note, or refused by name. A newer package with a new one fails here, and says what is to be decided.
"""

from __future__ import annotations

import collections.abc
import types
import typing
from collections.abc import Iterator
from typing import Any, NotRequired, Required, Union

import anthropic.types as anthropic_types
import anthropic.types.beta as anthropic_beta
import msgspec
import openai.types.chat.completion_create_params as chat_params
import openai.types.completion_create_params as completion_params
import openai.types.responses.response_create_params as response_params
import pytest
from msgspec import inspect
from typing_extensions import is_typeddict

from loreloop.protocol.anthropic_rest import CountTokens, Messages
from loreloop.protocol.as_sent import neutral_of, notes_of
from loreloop.protocol.hints import ADVICE
from loreloop.protocol.openai_rest import ChatCompletion, Completion
from loreloop.protocol.responses_rest import CreateResponse

BODIES: list[tuple[Any, type[msgspec.Struct]]] = [
    (completion_params.CompletionCreateParamsBase, Completion),
    (chat_params.CompletionCreateParamsBase, ChatCompletion),
    (response_params.ResponseCreateParamsBase, CreateResponse),
    (anthropic_types.message_create_params.MessageCreateParamsBase, Messages),
    (anthropic_types.message_count_tokens_params.MessageCountTokensParams, CountTokens),
    (anthropic_beta.message_create_params.MessageCreateParamsBase, Messages),
    (anthropic_beta.message_count_tokens_params.MessageCountTokensParams, CountTokens),
]
# Of these the caller may not be sure that they are without meaning here, so they are refused by name.
REFUSED: dict[str, set[str]] = {
    "ChatMessage": {"audio"},
    "Item": {"namespace"},
    "Message": {"output_config"},
    "ToolUse": {"toolset_name"},
    "ToolResult": {"toolset_name"},
}
# Kinds of parts, items and tools (the word in `type`) that are refused, with those that are served.
REFUSED_KINDS = {
    *("file", "input_audio", "input_file", "custom", "allowed_tools"),  # OpenAI's
    *("additional_tools", "apply_patch_call", "apply_patch_call_output", "code_interpreter_call", "compaction"),
    *("compaction_trigger", "computer_call", "computer_call_output", "configuration_update", "custom_tool_call"),
    *("custom_tool_call_output", "file_search_call", "image_generation_call", "local_shell_call"),
    *("local_shell_call_output", "mcp_approval_request", "mcp_approval_response", "mcp_call", "mcp_list_tools"),
    *("program", "program_output", "shell_call", "shell_call_output", "tool_search_call", "tool_search_output"),
    *("web_search_call", "apply_patch", "file_search", "web_search_preview", "computer", "computer_use_preview"),
    *("computer_use", "web_search_preview_2025_03_11", "image_generation", "code_interpreter", "mcp", "shell"),
    *("programmatic_tool_calling", "local_shell", "namespace", "tool_search", "web_search", "web_search_2025_08_26"),
    *("advisor_tool_result", "bash_code_execution_tool_result", "code_execution_tool_result"),  # Anthropic's
    *("container_upload", "fallback", "mcp_tool_listing", "mcp_tool_result", "mcp_tool_use", "search_result"),
    *("server_tool_use", "text_editor_code_execution_tool_result", "tool_addition", "tool_removal"),
    *("tool_search_tool_result", "web_fetch_tool_result", "web_search_tool_result", "browser_state"),
    *("tool_reference", "advisor_20260301", "bash_20241022", "bash_20250124", "browser_toolset_20260801"),
    *("code_execution_20250522", "code_execution_20250825", "code_execution_20260120", "code_execution_20260521"),
    *("computer_20241022", "computer_20250124", "computer_20251124", "computer_toolset_20260801", "mcp_toolset"),
    *("memory_20250818", "text_editor_20241022", "text_editor_20250124", "text_editor_20250429"),
    *("text_editor_20250728", "tool_search_tool_bm25_20251119", "tool_search_tool_bm25"),
    *("tool_search_tool_regex_20251119", "tool_search_tool_regex", "web_fetch_20250910", "web_fetch_20260209"),
    *("web_fetch_20260309", "web_fetch_20260318", "web_search_20250305", "web_search_20260209"),
    "web_search_20260318",
}


def plain(hint: Any) -> Any:
    while typing.get_origin(hint) in (Required, NotRequired, typing.Annotated):
        hint = typing.get_args(hint)[0]
    return hint


def dicts_in(hint: Any) -> Iterator[Any]:
    """The typed dictionaries that a value may be, or hold in its list."""
    hint = plain(hint)
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        for one in typing.get_args(hint):
            yield from dicts_in(one)
    elif origin in (list, collections.abc.Iterable, collections.abc.Sequence):
        yield from dicts_in(typing.get_args(hint)[0])
    elif is_typeddict(hint):
        yield hint


def structs_in(info: inspect.Type) -> Iterator[inspect.StructType]:
    match info:
        case inspect.StructType():
            yield info
        case inspect.Metadata(type=inner):
            yield from structs_in(inner)
        case inspect.VarTupleType(item_type=item):
            yield from structs_in(item)
        case inspect.UnionType(types=several):
            for one in several:
                yield from structs_in(one)


def kinds_of(sent: Any) -> tuple[str, ...]:
    kind = plain(typing.get_type_hints(sent, include_extras=True).get("type"))
    words = [word for word in (typing.get_args(kind) if kind is not None else ()) if isinstance(word, str)]
    nested = [word for one in typing.get_args(kind) for word in typing.get_args(one) if isinstance(word, str)]
    return (*words, *nested)


def structs_for(sent: Any, served: list[inspect.StructType]) -> list[inspect.StructType]:
    """Those that take a dictionary of this kind."""
    kinds = kinds_of(sent)
    found = []
    for struct in served:
        words = {struct.tag} if struct.tag is not None else set()
        for field in struct.fields:
            several = field.type.types if isinstance(field.type, inspect.UnionType) else [field.type]
            if field.encode_name == "type":
                words |= {word for one in several if isinstance(one, inspect.LiteralType) for word in one.values}
        if not words or not kinds or words & set(kinds):
            found.append(struct)
    return found


def undecided(sent: Any, struct: inspect.StructType, seen: set[tuple[str, str]], place: str) -> Iterator[str]:
    if (sent.__name__, struct.cls.__name__) in seen:
        return
    seen.add((sent.__name__, struct.cls.__name__))
    fields = {field.encode_name: field.type for field in struct.fields}
    advised = {name for base in struct.cls.__mro__ for name in ADVICE.get(base, {})}
    known = notes_of(struct.cls) | neutral_of(struct.cls).keys() | advised
    for name, hint in typing.get_type_hints(sent, include_extras=True).items():
        where = f"{place}.{name}"
        if name in fields:
            served = list(structs_in(fields[name]))
            for one in dicts_in(hint) if served else ():
                taking = structs_for(one, served)
                if not taking and not set(kinds_of(one)) <= REFUSED_KINDS:
                    yield f"{where} of the kind {kinds_of(one)}"
                for inner in taking:
                    yield from undecided(one, inner, seen, where)
        elif name not in known and name not in REFUSED.get(struct.cls.__name__, ()) and name != struct.tag_field:
            yield f"{where} ({struct.cls.__name__})"


@pytest.mark.parametrize(("sent", "body"), BODIES, ids=lambda one: f"{one.__module__}.{one.__name__}")
def test_every_parameter_is_decided_on(sent: Any, body: type[msgspec.Struct]) -> None:
    found = inspect.type_info(body)
    assert isinstance(found, inspect.StructType)
    left = sorted(set(undecided(sent, found, set(), body.__name__)))
    assert not left, (
        "A client can send what nobody has decided on. Serve it (a field in protocol/*_rest.py), let it pass where it "
        "changes nothing (protocol/hints.py: NOTES, NEUTRAL), or refuse it by name (ADVICE there, or REFUSED and "
        "REFUSED_KINDS here):\n" + "\n".join(left)
    )

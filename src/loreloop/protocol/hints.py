"""What clients send beside what is served: notes that change nothing, values that mean nothing, and fields that are
refused with a word on what to do. One table a kind, by the struct in which a field stands; `as_sent` applies them.

A note passes with whatever value it has. Whatever stands in none of the tables nor in a struct is refused by name.
"""

from __future__ import annotations

from typing import Any

import msgspec

from loreloop.protocol import anthropic_rest as messages
from loreloop.protocol import openai_rest as openai
from loreloop.protocol import responses_rest as responses

Kind = type[msgspec.Struct]

# Prefixes are cached without being asked, so where a client would cut them changes nothing.
EVERYWHERE = frozenset({"cache_control", "prompt_cache_breakpoint"})

# Whom a request is for, how it is billed, filed, cached and hurried.
_CALLERS = frozenset(
    {"service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "prompt_cache_options"}
)
_LOADING = frozenset({"defer_loading", "allowed_callers"})  # of tools: all are loaded, and the model alone calls them

NOTES: dict[Kind, frozenset[str]] = {
    openai.Common: _CALLERS | {"store", "verbosity", "prediction"},
    openai.Completion: frozenset({"metadata"}),
    openai.ChatMessage: frozenset({"annotations", "warning", "parsed"}),
    openai.ImageUrl: frozenset({"detail"}),
    openai.ToolCallBody: frozenset({"index"}),
    openai.FunctionCall: frozenset(
        {"parsed_arguments"}
    ),  # this and `parsed`: what a client read out of the text itself
    responses.CreateResponse: _CALLERS
    | {"verbosity", "max_tool_calls", "background_options", "access_programs", "image"},
    responses.Item: frozenset({"status", "phase", "caller", "parsed_arguments"}),
    responses.OutputText: frozenset({"annotations", "logprobs", "parsed"}),
    responses.InputImage: frozenset({"detail"}),
    responses.TextSettings: frozenset({"verbosity"}),
    responses.Reasoning: frozenset({"summary", "generate_summary"}),
    responses.FunctionTool: _LOADING | {"output_schema"},
    messages.CountTokens: frozenset(
        {
            "service_tier",
            "inference_geo",
            "speed",
            "diagnostics",
            "user_profile_id",
            "workspace_id",
            "billing_policy",
            "fallbacks",
            "fallback_credit_token",
            "anthropic_version",
            "anthropic_beta",
            "betas",
        }
    ),
    messages.Text: frozenset({"citations"}),
    messages.Image: frozenset({"transformations"}),
    messages.ThinkingPart: frozenset({"signature"}),
    messages.ToolUse: frozenset({"caller"}),
    messages.AnthropicTool: _LOADING | {"eager_input_streaming", "input_examples"},
    messages.ThinkingConfig: frozenset({"budget_tokens", "display", "block_binding"}),
    messages.OutputConfig: frozenset({"task_budget"}),
}

# Values that ask for nothing, of fields that are refused otherwise.
NEUTRAL: dict[Kind, dict[str, tuple[Any, ...]]] = {
    openai.Completion: {"best_of": (1,), "suffix": ("",)},
    openai.ChatCompletion: {
        "functions": ([],),
        "function_call": ("auto", "none"),
        "modalities": (["text"],),
    },
    openai.ChatMessage: {"function_call": ({},)},
    responses.CreateResponse: {
        "background": (False,),
        "truncation": ("disabled",),
        "context_management": ([],),
        "top_logprobs": (0,),
    },
    responses.FunctionTool: {"async": (False,)},
    responses.Item: {"async": (False,)},
    responses.Reasoning: {"context": ("auto",), "mode": ("standard",)},
    messages.CountTokens: {"mcp_servers": ([],)},
    messages.Message: {"clear_at": ("never",)},
}

# What to do instead, where leaving a field out is not all there is to say.
ADVICE: dict[Kind, dict[str, str]] = {
    openai.Completion: {
        "best_of": "draw n samples and choose among them by their logprobs",
        "suffix": "a prompt goes on here, gaps are not filled",
    },
    openai.ChatCompletion: {
        "functions": "send them as tools",
        "function_call": "send tool_choice",
        "web_search_options": "send tools of type 'function', or register a server with `loreloop tools add`",
        "modalities": "answers are text",
        "audio": "answers are text",
        "moderation": "nothing is moderated here",
    },
    responses.CreateResponse: {
        "top_logprobs": "chat/completions has log-probabilities",
        "conversation": "send previous_response_id, or the whole input",
        "background": "stream the answer instead",
        "truncation": "a prompt that is too long is refused, never cut",
        "context_management": "send a shorter input",
        "moderation": "nothing is moderated here",
        "prompt": "templates are not kept here; send instructions and input",
    },
    messages.CountTokens: {
        "container": "nothing is executed here",
        "mcp_servers": "let your client call them, and send their tools",
        "compaction": "send a shorter history",
        "thread": "send the whole history",
    },
}

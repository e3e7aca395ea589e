"""What OpenAI's routes say alike: frames of answers, usage, errors inside a stream, sampling parameters. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from loreloop.http.generation.requests import Model
from loreloop.http.sse import data_event
from loreloop.protocol.openai_rest import Common, JsonObjectFormat, JsonSchemaFormat, ResponseFormat
from loreloop.protocol.rest import WireSamplingParams
from loreloop.protocol.sampling import SampleOp, SampleResult
from loreloop.protocol.token_ids import n_ids
from loreloop.protocol.training import Failure, length_of


def wire_params(body: Common, max_tokens: int | None) -> WireSamplingParams:
    """OpenAI's parameters as the protocol's; what is left open takes its default there."""
    # Only what the body names is passed on, so that the protocol's own defaults hold for the rest.
    given = {
        name: value
        for name in (
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "presence_penalty",
            "frequency_penalty",
            "repetition_penalty",
            "logit_bias",
            "seed",
            "grammar",
            "regex",
        )
        if (value := getattr(body, name)) is not None
    }
    return WireSamplingParams(max_tokens=max_tokens, stop=stop_strings(body) or None, **given)


def schema_of(asked: ResponseFormat | None) -> dict[str, Any] | None:
    """The JSON schema of a response format; None where any text will do."""
    if isinstance(asked, JsonObjectFormat):
        return {"type": "object"}
    return asked.json_schema.schema_ if isinstance(asked, JsonSchemaFormat) else None


def format_json(asked: ResponseFormat | None) -> dict[str, Any] | None:
    """A response format as it was sent, without the fields that were left out."""
    if not isinstance(asked, JsonSchemaFormat):
        return None if asked is None else msgspec.to_builtins(asked)
    told = msgspec.to_builtins(asked.json_schema)
    return {"type": "json_schema", "json_schema": {name: value for name, value in told.items() if value is not None}}


def is_strict(asked: ResponseFormat | None) -> bool:
    """Whether a response format is to be held exactly, or refused."""
    return isinstance(asked, JsonSchemaFormat) and bool(asked.json_schema.strict)


def stop_strings(body: Common) -> tuple[str, ...]:
    """The strings that end an answer, as a tuple whatever form the body has."""
    return (body.stop,) if isinstance(body.stop, str) else body.stop or ()


def frame(prefix: str, kind: str, op: SampleOp, name: str, created: int, model: Model) -> dict[str, Any]:
    """The fields that open every answer and chunk of OpenAI's two older APIs; `created` is in seconds since the
    epoch."""
    return {
        "id": f"{prefix}-{op.request_id.removeprefix('gen-')}",
        "object": kind,
        "created": created,
        "model": name,
        "system_fingerprint": model.fingerprint,
    }


def usage(ops: Sequence[SampleOp], found: Sequence[SampleResult]) -> dict[str, Any]:
    """Tokens of the prompts and of all that was drawn; cached tokens count as part of the prompts."""
    n_prompt = sum(length_of(op.prompt) for op in ops)
    # Every sample of a request counts, while its prompt, which is computed once, counts once.
    n_drawn = sum(n_ids(sequence.tokens) for result in found for sequence in result.sequences)
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_drawn,
        "total_tokens": n_prompt + n_drawn,
        "prompt_tokens_details": {"cached_tokens": sum(result.cache_hit_tokens for result in found)},
    }


def failure_event(failure: Failure) -> bytes:
    """A failure in the middle of a stream, where no status code can tell of it any more."""
    # OpenAI's clients look at the type to decide whether they ask again.
    kind = "invalid_request_error" if failure.category == "user" else "server_error"
    return data_event({"error": {"message": failure.message, "type": kind, "code": None, "param": None}})

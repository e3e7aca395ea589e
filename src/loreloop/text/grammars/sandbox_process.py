"""Tries grammars, one a line of its input, and answers one line each.

Started as `python -m loreloop.text.grammars.sandbox_process`.

Its timer of computing and its bound of memory have no handler: what exceeds them ends the process.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import msgspec
from llguidance import LLTokenizer

from loreloop.protocol.errors import BadRequest
from loreloop.text.grammars.grammar import Grammars, grammar_of, is_held
from loreloop.text.grammars.held_schema import held
from loreloop.text.grammars.sandbox import (
    MAX_BYTES,
    MAX_SECONDS,
    HeldSchemas,
    Question,
    SchemaQuestion,
    Verdict,
    WantedSchema,
)
from loreloop.text.resource_limits import address_space_bytes

MAX_NAMED, MAX_NAME = 16, 240  # keywords in one message, and characters that tell one and its place


def main() -> None:
    """Answers lines until the input ends. The model's tokenizer is read before the timer starts, so that only the
    grammar's own work counts."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin.buffer:
        question = msgspec.json.decode(line, type=Question | SchemaQuestion)
        if isinstance(question, Question):
            of_model(question.folder, question.vocab_size, question.stop_tokens)  # before the clock starts
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (address_space_bytes() + MAX_BYTES, hard))
        signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)
        verdict = tried(question) if isinstance(question, Question) else held_schemas(question.wanted)
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        sys.stdout.buffer.write(msgspec.json.encode(verdict) + b"\n")
        sys.stdout.buffer.flush()


@lru_cache(maxsize=8)
def of_model(folder: str, vocab_size: int, stop_tokens: tuple[int, ...]) -> Grammars:
    """Over the model's tokens; over bytes where its tokenizer cannot be read for grammars, as its engine then says."""
    try:
        return Grammars.of(Path(folder), vocab_size, stop_tokens)
    except (BadRequest, ValueError, TypeError, RuntimeError):
        return Grammars(LLTokenizer("byte"), 257)


def held_schemas(wanted: Sequence[WantedSchema]) -> HeldSchemas:
    """Those of one request; what was left out is named only once."""
    found = [held(one.schema_, lambda schema: is_held(json.dumps(schema))) for one in wanted]
    for one, schema in zip(wanted, found, strict=True):
        if one.strict and schema.left_out:
            return HeldSchemas(
                error=f"The schema of {one.about} is strict and has what cannot be held here: "
                f"{', '.join(named(schema.left_out))}. Leave that out of the schema, or send it without strict."
            )
    several = len(wanted) > 1
    left_out = [
        f"{what} of {one.about}" if several else what
        for one, schema in zip(wanted, found, strict=True)
        for what in schema.left_out
    ]
    return HeldSchemas(tuple(schema.schema for schema in found), named(left_out))


def named(left_out: Sequence[str]) -> tuple[str, ...]:
    """The first of them, and how many more there are: a small schema can have many, at places of long names."""
    first = tuple(what if len(what) <= MAX_NAME else f"{what[:MAX_NAME]}…" for what in left_out[:MAX_NAMED])
    n_more = len(left_out) - len(first)
    return (*first, f"and {n_more} more") if n_more else first


def tried(question: Question) -> Verdict:
    """Prepared as an engine will, up to what may come first."""
    rules, grammars = question.rules, of_model(question.folder, question.vocab_size, question.stop_tokens)
    try:
        grammar = grammar_of(rules.grammar, rules.json_schema, rules.regex)
        grammars.built(grammar or "").allowed()
    except BadRequest as error:
        return Verdict(error=error.message)
    return Verdict(grammar)


if __name__ == "__main__":
    main()

"""Grammars that a sampled text must follow, read over a model's tokens.

A grammar is a text in the Lark dialect of the llguidance library, or what `json_schema_grammar` and `regex_grammar`
make. Untrusted: every step is bounded, building only in `sandbox.py`. Knows no engine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray

from loreloop.protocol.errors import BadRequest
from loreloop.text.tokenizer_files import read_tokenizer

MAX_GRAMMAR_BYTES = 32 << 10  # the library takes up to 40 ms a kilobyte
N_BUILT = 64  # grammars that a model keeps; a copy shares what is large
MAX_RULES, MAX_DEPTH = 500, 64  # it recurses through rules, references and brackets, and has no bound of its own
LIMITS = LLParserLimits(
    initial_lexer_fuel=2_000_000,  # 40 ms
    step_lexer_fuel=200_000,  # 14 ms
    step_max_items=50_000,
    max_items_in_row=2000,
    max_lexer_states=2_000,  # 2 kB each, for every sample
    max_grammar_size=200_000,
    verbose_errors=False,
)

_RULE = re.compile(r"""^\s*[?!]?\w+(?:\[[^\]\n]*\])?(?:\.\d+)?\s*:|\$ref""", re.MULTILINE)
_BRACKET = re.compile(r"[(\[{)\]}]")


class Constraint:
    """One text on its way through a grammar."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self.matcher, self.vocab_size = matcher, vocab_size

    def allowed(self) -> NDArray[np.bool_]:
        """(V,): the tokens that may follow, those that end a text among them where it may end here."""
        mask = np.frombuffer(self.matcher.compute_bitmask(), np.uint8)
        self._check()
        return np.unpackbits(mask, bitorder="little")[: self.vocab_size].astype(np.bool_)

    def take(self, token: int) -> None:
        """Goes on by one token. BadRequest where the grammar does not allow it, or following it takes too much."""
        self.matcher.consume_token(token)
        self._check()

    def copy(self) -> Constraint:
        """Another text at the same place."""
        return Constraint(self.matcher.deep_copy(), self.vocab_size)

    @property
    def over(self) -> bool:
        """Whether nothing can follow any more."""
        return bool(self.matcher.is_stopped())

    def _check(self) -> None:
        if self.matcher.is_error():
            raise BadRequest(f"The grammar cannot be followed: {self.matcher.get_error()}")


class Grammars:
    """Grammars over one model's tokens."""

    def __init__(self, tokenizer: LLTokenizer, vocab_size: int) -> None:
        self.tokenizer, self.vocab_size = tokenizer, vocab_size
        self.kept = lru_cache(maxsize=N_BUILT)(self.built)

    @classmethod
    def of(cls, folder: Path, vocab_size: int, stop_tokens: Sequence[int]) -> Grammars:
        """`stop_tokens` may come where a grammar lets its text end."""
        text, stops = read_tokenizer(folder).tokenizer.to_str(), list(stop_tokens) or None
        return cls(LLTokenizer(text, n_vocab=vocab_size, eos_token=stops), vocab_size)

    def constraint(self, grammar: str) -> Constraint:
        """A text at the beginning of a grammar, which is built once: that may take a while."""
        return self.kept(grammar).copy()

    def built(self, grammar: str) -> Constraint:
        """BadRequest where the grammar is wrong, or too large to be followed in bounded time."""
        matcher = LLMatcher(self.tokenizer, grammar, log_level=0, limits=LIMITS)
        if matcher.is_error():
            raise BadRequest(f"The grammar or schema cannot be used: {matcher.get_error()}")
        return Constraint(matcher, self.vocab_size)


def json_schema_grammar(schema: dict[str, Any]) -> str:
    """JSON that satisfies a schema, without white space between its parts."""
    text = json.dumps(schema)
    _check_size(text)
    try:
        return LLMatcher.grammar_from_json_schema(text, overrides={"whitespace_flexible": False})
    except ValueError as error:
        raise BadRequest(f"The JSON schema cannot be used: {error}") from None


@lru_cache(maxsize=4096)
def is_held(schema: str) -> bool:
    """Whether a small schema, as JSON, can be held exactly. Untrusted, as every grammar is."""
    try:
        grammar = LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_flexible": False})
    except ValueError:
        return False
    return not LLMatcher.validate_grammar(grammar, limits=LIMITS)


def regex_grammar(regex: str) -> str:
    """Text that matches a regular expression in Rust's syntax as a whole; BadRequest where it is too large."""
    _check_size(regex)
    return LLMatcher.grammar_from_regex(regex)


def grammar_of(grammar: str | None, json_schema: dict[str, Any] | None, regex: str | None) -> str | None:
    """The one that is given, checked as far as that goes without a tokenizer; BadRequest for two."""
    values = (("grammar", grammar), ("json_schema", json_schema), ("regex", regex))
    given = [name for name, value in values if value is not None]
    if len(given) > 1:
        raise BadRequest(f"{given[0]} and {given[1]} were given; a text can follow one of them.")
    if json_schema is not None:
        grammar = json_schema_grammar(json_schema)
    elif regex is not None:
        grammar = regex_grammar(regex)
    if grammar is not None:
        check_grammar(grammar)
    return grammar


@lru_cache(maxsize=256)
def check_grammar(grammar: str) -> None:
    """BadRequest for a grammar that is wrong or over the bounds, as far as that shows without a tokenizer."""
    _check_size(grammar)
    if error := LLMatcher.validate_grammar(grammar, limits=LIMITS):
        raise BadRequest(f"The grammar or schema cannot be used: {error}")


def _check_size(text: str) -> None:
    """Refuses what the library might take minutes for, or overflow its stack on. Counts roughly, never too little."""
    if len(text) > MAX_GRAMMAR_BYTES:
        raise BadRequest(f"The grammar or schema has {len(text)} characters; at most {MAX_GRAMMAR_BYTES} are followed.")
    # The library checks neither before it recurses, and an overflow of its stack ends the process without an error.
    n_rules = len(_RULE.findall(text))
    if n_rules > MAX_RULES:
        raise BadRequest(f"The grammar or schema has about {n_rules} rules or references; {MAX_RULES} are followed.")
    depth = deepest = 0
    for bracket in _BRACKET.findall(text):
        depth = depth + 1 if bracket in "([{" else max(0, depth - 1)
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH:
        raise BadRequest(f"The grammar or schema is nested {deepest} deep; {MAX_DEPTH} are followed.")

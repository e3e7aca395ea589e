"""Tries grammars, one a line of its input, and answers one line each: `python -m loreloop.text.trial_process`.

Its timer of computing and its bound of memory have no handler: what exceeds them ends the process.
"""

from __future__ import annotations

import resource
import signal
import sys

import msgspec
from llguidance import LLMatcher, LLTokenizer

from loreloop.protocol.errors import BadRequest
from loreloop.text.bounded import address_space_bytes
from loreloop.text.grammar import LIMITS, grammar_of
from loreloop.text.trial import MAX_BYTES, MAX_SECONDS, Rules, Verdict


def main() -> None:
    room = address_space_bytes() + MAX_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    tokenizer = LLTokenizer("byte")
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)
        verdict = tried(msgspec.json.decode(line, type=Rules), tokenizer)
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.buffer.write(msgspec.json.encode(verdict) + b"\n")
        sys.stdout.buffer.flush()


def tried(rules: Rules, tokenizer: LLTokenizer) -> Verdict:
    """Prepared as an engine will, over bytes in place of a model's tokens, up to the first mask."""
    try:
        grammar = grammar_of(rules.grammar, rules.json_schema, rules.regex)
        matcher = LLMatcher(tokenizer, grammar or "", log_level=0, limits=LIMITS)
        if not matcher.is_error():
            matcher.compute_bitmask()
        if matcher.is_error():
            raise BadRequest(f"The grammar or schema cannot be used: {matcher.get_error()}")
    except BadRequest as error:
        return Verdict(error=error.message)
    return Verdict(grammar)


if __name__ == "__main__":
    main()

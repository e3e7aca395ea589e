"""Grammars made to hurt are refused at once, in a process of their own so that a crash would show."""

import json
import subprocess
import sys
import time

import pytest

from loreloop.protocol.errors import BadRequest
from loreloop.text.grammar import check_grammar, grammar_of

CHAIN = "\n".join(f"r{i}: r{i + 1}" for i in range(3000)) + '\nr3000: "a"\nstart: r0'
REFERENCES = {"$ref": "#/$defs/d0", "$defs": {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(3000)}}
DEEP: dict[str, object] = {}
for _ in range(400):
    DEEP = {"type": "array", "items": DEEP}
WIDE = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(10_000)}}
HOSTILE = {
    "a chain of rules": (CHAIN, None, None),
    "a chain of references": (None, REFERENCES, None),
    "deep brackets": (None, None, "(" * 5000 + "a" + ")" * 5000),
    "a deep schema": (None, DEEP, None),
    "a wide schema": (None, WIDE, None),
    "no schema": (None, {"type": 5}, None),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_grammars_made_to_hurt_are_refused_at_once(name: str) -> None:
    code = (
        "import json, sys\n"
        "from loreloop.protocol.errors import BadRequest\n"
        "from loreloop.text.grammar import grammar_of\n"
        "try: grammar_of(*json.load(sys.stdin))\n"
        "except BadRequest as error: print('refused', error)"
    )
    started = time.monotonic()
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, input=json.dumps(HOSTILE[name]), capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout[:7]) == (0, "refused"), done.stderr
    assert time.monotonic() - started < 10


def test_two_rules_for_one_text_are_refused_even_where_one_is_empty() -> None:
    with pytest.raises(BadRequest, match="grammar and json_schema"):
        grammar_of('start: "a"', {}, None)


def test_ordinary_grammars_pass() -> None:
    check_grammar('start: "a" b\nb: /x+/')
    assert grammar_of(None, {"type": "object"}, None)
    assert grammar_of(None, None, "(a|b)*")
    assert grammar_of(None, None, None) is None

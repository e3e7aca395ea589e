"""Grammars made to hurt are refused at once, in a process of their own so that a crash would show."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from llguidance import LLTokenizer

from loreloop.protocol.errors import BadRequest, Unavailable
from loreloop.protocol.link import EngineInfo
from loreloop.text.grammars.grammar import Grammars, check_grammar, grammar_of, regex_grammar
from loreloop.text.grammars.sandbox import MAX_WAITING, GrammarSandbox, Rules
from tests.tiny import make_tokenizer

CHAIN = "\n".join(f"r{i}: r{i + 1}" for i in range(3000)) + '\nr3000: "a"\nstart: r0'
REFERENCES = {"$ref": "#/$defs/d0", "$defs": {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(3000)}}
DEEP: dict[str, object] = {}
for _ in range(400):
    DEEP = {"type": "array", "items": DEEP}
BOTH = "start: X\nX: " + " & ".join(rf"/(.|\n)*w{i}(.|\n)*/" for i in range(300))
ALL_OF = {"allOf": [{"type": "string", "pattern": f"w{i}"} for i in range(300)]}
WIDE = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(10_000)}}
HOSTILE = {
    "a chain of rules": (CHAIN, None, None),
    "a chain of references": (None, REFERENCES, None),
    "deep brackets": (None, None, "(" * 5000 + "a" + ")" * 5000),
    "a deep schema": (None, DEEP, None),
    "a wide schema": (None, WIDE, None),
    "no schema": (None, {"type": 5}, None),
}


@pytest.mark.timed
@pytest.mark.parametrize("name", HOSTILE)
def test_grammars_made_to_hurt_are_refused_at_once(name: str) -> None:
    code = (
        "import json, sys\n"
        "from loreloop.protocol.errors import BadRequest\n"
        "from loreloop.text.grammars.grammar import grammar_of\n"
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


NOWHERE = EngineInfo("fake", "", 1000, 100, (0,), 8, 1)  # no tokenizer: bytes take its place
UNBOUNDED = {"texts that hold many words": Rules(grammar=BOTH), "a schema of many patterns": Rules(json_schema=ALL_OF)}


@pytest.mark.timed
@pytest.mark.parametrize("name", [*HOSTILE, *UNBOUNDED])
def test_what_the_library_itself_does_not_bound_ends_with_its_process(name: str) -> None:
    async def scene() -> None:
        sandbox = GrammarSandbox()
        rules = UNBOUNDED.get(name) or Rules(*HOSTILE[name])
        good = Rules(json_schema={"type": "object"})
        assert await sandbox.grammar_of(good, NOWHERE)
        started = time.monotonic()
        together = [
            sandbox.grammar_of(rules, NOWHERE),
            sandbox.grammar_of(rules, NOWHERE),
            sandbox.grammar_of(good, NOWHERE),
        ]
        first, second, third = await asyncio.gather(*together, return_exceptions=True)
        assert isinstance(first, BadRequest)
        assert str(first) == str(second)
        assert isinstance(third, str)
        assert time.monotonic() - started < 10
        assert ("to prepare" in str(first)) or name in HOSTILE
        await sandbox.close()

    asyncio.run(scene())


@pytest.mark.timed
def test_a_trial_answers_as_the_check_does() -> None:
    async def scene() -> None:
        sandbox = GrammarSandbox()
        assert await sandbox.grammar_of(Rules(), NOWHERE) is None
        for rules in (Rules(regex="(a|b)*"), Rules(grammar='start: "é"'), Rules(json_schema={"type": "integer"})):
            assert await sandbox.grammar_of(rules, NOWHERE) == grammar_of(rules.grammar, rules.json_schema, rules.regex)
        for wrong in (Rules('start: "a"', {}), Rules("start: nothing"), Rules(regex="("), Rules(regex="é" * 40_000)):
            with pytest.raises(BadRequest):
                await sandbox.grammar_of(wrong, NOWHERE)
        started = time.monotonic()
        for _ in range(100):
            await sandbox.grammar_of(Rules(regex="(a|b)*"), NOWHERE)
        assert time.monotonic() - started < 0.1
        await sandbox.close()

    asyncio.run(scene())


PATTERNS = [
    Rules(json_schema={"allOf": [{"type": "string", "pattern": f"w{i}x{j}"} for j in range(300)]}) for i in range(6)
]
GOOD = Rules(regex="(a|b)*")


def test_a_process_that_others_end_says_nothing_of_a_grammar() -> None:
    async def scene() -> None:
        sandbox = GrammarSandbox()
        assert await sandbox.grammar_of(GOOD, NOWHERE)
        assert sandbox.process
        os.kill(sandbox.process.pid, signal.SIGKILL)
        assert await sandbox.grammar_of(Rules(regex="c"), NOWHERE)  # in a new one
        os.kill(sandbox.process.pid, signal.SIGSTOP)
        sandbox.wait_seconds = 1.0
        with pytest.raises(Unavailable, match="within 1 s"):
            await sandbox.grammar_of(Rules(regex="d"), NOWHERE)
        sandbox.wait_seconds = 20.0
        assert await sandbox.grammar_of(Rules(regex="d"), NOWHERE)
        await sandbox.close()

    asyncio.run(scene())


def test_a_process_that_cannot_start_is_an_error_to_try_again_after(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(Unavailable, match="could be started"):
        asyncio.run(GrammarSandbox().grammar_of(GOOD, NOWHERE))


def test_what_is_known_does_not_wait_behind_what_is_not() -> None:
    async def scene() -> None:
        sandbox = GrammarSandbox()
        assert await sandbox.grammar_of(GOOD, NOWHERE)
        others = [asyncio.create_task(sandbox.grammar_of(rules, NOWHERE)) for rules in PATTERNS]
        await asyncio.sleep(0.01)
        assert await sandbox.grammar_of(GOOD, NOWHERE)
        assert not any(task.done() for task in others)
        sandbox.n_waiting += MAX_WAITING
        with pytest.raises(Unavailable, match="wait to be tried"):
            await sandbox.grammar_of(Rules(regex="e"), NOWHERE)
        assert await sandbox.grammar_of(GOOD, NOWHERE)
        sandbox.n_waiting -= MAX_WAITING
        assert all(isinstance(error, BadRequest) for error in await asyncio.gather(*others, return_exceptions=True))
        assert (sandbox.n_waiting, len(sandbox.known)) == (0, 1 + len(PATTERNS))
        await sandbox.close()

    asyncio.run(scene())


def test_a_grammar_is_built_once_for_all_texts_that_follow_it() -> None:
    grammars = Grammars(LLTokenizer("byte"), 257)
    one, other = (grammars.constraint(regex_grammar("ab")) for _ in range(2))
    one.take(ord("a"))
    assert (one.allowed()[ord("b")], other.allowed()[ord("b")], other.allowed()[ord("a")]) == (True, False, True)
    assert grammars.constraint(regex_grammar("ab")).allowed()[ord("a")]
    assert grammars.kept.cache_info().misses == 1


def test_a_models_own_tokens_may_be_named(tmp_path: Path) -> None:
    make_tokenizer(tmp_path, 400)
    info = EngineInfo("tiny", str(tmp_path), 400, 100, (2,), 8, 1)

    async def scene() -> None:
        sandbox = GrammarSandbox()
        assert await sandbox.grammar_of(Rules('start: <|im_start|> "a" <[2]>'), info)
        with pytest.raises(BadRequest, match="unknown special token"):
            await sandbox.grammar_of(Rules("start: <|no_such|>"), info)
        await sandbox.close()

    asyncio.run(scene())


def test_two_rules_for_one_text_are_refused_even_where_one_is_empty() -> None:
    with pytest.raises(BadRequest, match="grammar and json_schema"):
        grammar_of('start: "a"', {}, None)


def test_ordinary_grammars_pass() -> None:
    check_grammar('start: "a" b\nb: /x+/')
    assert grammar_of(None, {"type": "object"}, None)
    assert grammar_of(None, None, "(a|b)*")
    assert grammar_of(None, None, None) is None

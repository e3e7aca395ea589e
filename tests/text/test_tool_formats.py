"""Which form a template asks for, how tools are told, and grammars that let a model write valid calls only."""

import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from loreloop.protocol.errors import BadRequest
from loreloop.text.tools import xml_calls
from loreloop.text.tools.tool_calls import Call, Tool
from loreloop.text.tools.tool_formats import (
    DEEPSEEK,
    DEEPSEEK_V31,
    HERMES,
    KIMI_K2,
    LLAMA3,
    MISTRAL,
    MISTRAL_LIST,
    QWEN3_CODER,
    ToolFormat,
    format_of,
    knows_tools,
    token_term,
)

FORMATS = [HERMES, LLAMA3, KIMI_K2, DEEPSEEK, DEEPSEEK_V31, MISTRAL, MISTRAL_LIST, QWEN3_CODER]
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = Tool("weather", 'What "weather" is it?\n', CITY)
DAYS = {
    "type": "object",
    "properties": {"days": {"type": "integer"}, "of": {"$ref": "#/$defs/season"}},
    "required": ["days"],
    "additionalProperties": False,
    "$defs": {"season": {"enum": ["summer", "winter"]}},
}
TOOLS = [WEATHER, Tool("weather_in", "", DAYS, strict=True)]


@pytest.mark.parametrize(
    ("template", "form"),
    [
        (None, HERMES),
        ("{{ messages }}", HERMES),
        ('{% if tools %}...{{ \'\\n<tool_call>\\n{"name": "\' }}{% endif %}', HERMES),
        ("{{ '<|python_tag|>' + call.name }}", LLAMA3),
        ("{{- '{\"name\": \"' + tool_call.name + '\", ' }}\n{{- '\"parameters\": ' }}", LLAMA3),
        ("{{ '[TOOL_CALLS]' + name + '[ARGS]' }}", MISTRAL),
        ("{{ '[TOOL_CALLS][' }}", MISTRAL_LIST),
        ("{{ '<tool_call>\\n<function=' + name + '>' }}<parameter=", QWEN3_CODER),
        ("{{ '<|tool_calls_section_begin|>' }}", KIMI_K2),
        ("{{ '<｜tool▁calls▁begin｜>' + '\\n```json\\n' }}", DEEPSEEK),
        ("{{ '<｜tool▁calls▁begin｜>' + name + '<｜tool▁sep｜>' }}", DEEPSEEK_V31),
    ],
)
def test_the_template_shows_the_format(template: str | None, form: ToolFormat) -> None:
    assert format_of(template) is form


@pytest.mark.parametrize(
    ("template", "knows"),
    [
        (None, False),
        ("{% if tools %}{{ tools | tojson }}{% endif %}", True),
        ("{% if tools is defined %}x{% endif %}", True),
        ("{% generation %}{% for t in tools %}{% break %}{% endfor %}{% endgeneration %}", True),
        ("{{ messages }} tools {# tools #} {{ 'tools' }}", False),
        ("{% set tools = none %}", False),
        ("{% if tools", False),
    ],
)
def test_whether_a_template_uses_tools(template: str | None, knows: bool) -> None:
    assert knows_tools(template) is knows


@pytest.mark.parametrize("form", FORMATS[:-1], ids=lambda form: form.name)
def test_instructions_name_every_tool_on_a_line(form: ToolFormat) -> None:
    lines = form.instructions(TOOLS).splitlines()
    described = [json.loads(line) for line in lines if line.startswith('{"type": "function"')]
    assert described == [tool.as_function() for tool in TOOLS]
    assert form.written([Call("name of the function", "{}")])[:-10].split("{}")[0] in "\n".join(lines)


def test_calls_are_written_as_published() -> None:
    calls = [Call('say "é"', '{"a": 1}'), Call("g", "{}")]
    assert HERMES.written(calls) == (
        '<tool_call>\n{"name": "say \\"\\u00e9\\"", "arguments": {"a": 1}}\n</tool_call>\n'
        '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>'
    )
    assert LLAMA3.written(calls[1:] * 2) == '{"name": "g", "parameters": {}}; {"name": "g", "parameters": {}}'
    assert HERMES.written([]) == KIMI_K2.written([]) == ""


class Matcher:
    """A grammar over a small real tokenizer, in which the given markers are special tokens."""

    def __init__(self, folder: Path, special: tuple[str, ...]) -> None:
        self.llguidance = pytest.importorskip("llguidance")
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<|end|>", *(marker for marker in special if marker not in HERMES.call)],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(['{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>'] * 9, trainer)
        # Qwen's tokenizers have these as tokens that are not called special.
        tokenizer.add_tokens([AddedToken(marker, special=False) for marker in special if marker in HERMES.call])
        tokenizer.save(str(folder / "tokenizer.json"))
        self.tokenizer = tokenizer
        self.added = {token.content: number for number, token in tokenizer.get_added_tokens_decoder().items()}
        self.tokens = self.llguidance.LLTokenizer(tokenizer.to_str(), eos_token=0)

    def accepts(self, form: ToolFormat, text: str, tools: list[Tool] = TOOLS, **settings: Any) -> bool:
        settings = {"at_least_one": True, "parallel": False} | settings
        grammar = form.grammar(tools, **settings, special=partial(token_term, self.added))
        matcher = self.llguidance.LLMatcher(self.tokens, grammar)
        assert not matcher.is_error(), matcher.get_error()
        tokens = self.tokenizer.encode(text, add_special_tokens=False).ids
        return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


@pytest.fixture(scope="module", params=[True, False], ids=["special", "text"])
def matcher(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Matcher:
    markers = tuple(dict.fromkeys(marker for form in FORMATS for marker in form.markers)) if request.param else ()
    return Matcher(tmp_path_factory.mktemp("tokenizer"), markers)


PARIS = Call("weather", '{"city": "Paris é🐙"}')
TWO_DAYS = Call("weather_in", '{"days":2, "of": "winter"}')
REFUSED = [
    Call("rain", '{"city": "Paris"}'),
    Call("weather", '{"city": 1}'),
    Call("weather", "{}"),
    Call("weather", '["Paris"]'),
    Call("weather_in", '{"days": "two"}'),
    Call("weather_in", '{"days": 2, "more": 1}'),
    Call("weather_in", '{"days": 2, "of": "spring"}'),
    Call("weather_in", '{"days": 2' + " " * 100 + "}"),
]


def refused(form: ToolFormat) -> list[Call]:
    """Where values stand as plain text, any text is a string, and there is nothing but an object."""
    return [REFUSED[at] for at in (0, 2, 4, 5, 6)] if form is QWEN3_CODER else REFUSED


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_a_grammar_lets_valid_calls_pass(matcher: Matcher, form: ToolFormat) -> None:
    for each in (PARIS, TWO_DAYS):
        assert matcher.accepts(form, form.written([each]))
        assert not matcher.accepts(form, form.written([each])[:-1])
    for each in refused(form):
        assert not matcher.accepts(form, form.written([each])), each
    assert not matcher.accepts(form, "")
    assert not matcher.accepts(form, "It rains.")
    assert not matcher.accepts(form, form.written([PARIS]) + "It rains.")


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_a_grammar_counts_calls(matcher: Matcher, form: ToolFormat) -> None:
    for n in range(1, 10):
        text = form.written(([PARIS, TWO_DAYS] * 5)[:n])
        assert matcher.accepts(form, text, parallel=True) == (n <= 8)
        assert matcher.accepts(form, text) == (n == 1)


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_a_grammar_may_leave_the_choice(matcher: Matcher, form: ToolFormat) -> None:
    free = {"at_least_one": False, "parallel": True}
    for text in ("", "It rains.\n", form.written([PARIS]), form.written([PARIS, TWO_DAYS])):
        assert matcher.accepts(form, text, **free), text
    assert not matcher.accepts(form, form.written([REFUSED[0]]), **free)
    if form is not LLAMA3:
        assert matcher.accepts(form, "<b>I look.</b>\n" + form.written([PARIS]), **free)
        assert not matcher.accepts(form, "I look.\n" + form.written([refused(form)[1]]), **free)


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_a_grammar_may_ask_for_calls_or_an_answer_of_a_schema(matcher: Matcher, form: ToolFormat) -> None:
    schema = {"type": "object", "properties": {"name": {"enum": ["é", "b"]}}, "required": ["name"]}
    either = {"at_least_one": False, "parallel": True, "answer": schema}
    for text in ('{"name":"é"}', form.written([PARIS]), form.written([PARIS, TWO_DAYS])):
        assert matcher.accepts(form, text, **either), text
    for text in (
        "",
        "It rains.",
        '{"name":"c"}',
        form.written([refused(form)[1]]),
        '{"name":"b"}' + form.written([PARIS]),
    ):
        assert not matcher.accepts(form, text, **either), text


def test_coders_parameters_are_written_by_their_schema(matcher: Matcher) -> None:
    schema = {
        "type": "object",
        "properties": {
            "text": {"type": "string"},
            "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "kind": {"enum": ["a", "b"]},
            "size": {"$ref": "#/$defs/size"},
        },
        "required": ["text", "kind"],
        "$defs": {"size": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}},
    }
    tools = [Tool("f", "", schema)]
    for good in (
        {"text": "any <b>\n</function> text", "kind": "b"},
        {"text": "", "maybe": "x", "kind": "a", "size": {"x": 1}},
    ):
        text = QWEN3_CODER.written([Call("f", json.dumps(good))])
        assert matcher.accepts(QWEN3_CODER, text, tools), text
    for bad in ({"text": "x"}, {"text": "x", "kind": "c"}, {"text": "x", "kind": "a", "size": {"x": "y"}}):
        assert not matcher.accepts(QWEN3_CODER, QWEN3_CODER.written([Call("f", json.dumps(bad))]), tools), bad


def of_coder(schema: dict[str, Any]) -> str:
    return QWEN3_CODER.grammar([Tool("f", "", schema)], at_least_one=True, parallel=False, special=lambda marker: None)


def branching(n: int) -> dict[str, Any]:
    """Every definition refers to the next one twice."""
    defs: dict[str, Any] = {
        f"d{at}": {"anyOf": [{"$ref": f"#/$defs/d{at + 1}", "x": 1}, {"$ref": f"#/$defs/d{at + 1}"}]} for at in range(n)
    }
    return {"properties": {"x": {"$ref": "#/$defs/d0"}}, "$defs": defs | {f"d{n}": {"type": "integer"}}}


@pytest.mark.timed
def test_coders_schemas_may_refer_to_themselves_and_branch() -> None:
    around = {"a": {"anyOf": [{"$ref": "#/$defs/b"}]}, "b": {"oneOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}]}}
    cycle = {"properties": {"x": {"$ref": "#/$defs/a"}}, "$defs": around}
    assert "%json" in of_coder(cycle)
    text = {
        "properties": {"x": {"$ref": "#/$defs/a"}},
        "$defs": around | {"b": {"$ref": "#/$defs/c"}, "c": {"const": "x"}},
    }
    assert "%json" not in of_coder(text)
    begin = time.perf_counter()
    assert "%json" in of_coder(branching(60))
    for refused in (branching(2000), {"properties": {f"p{at}": {"$ref": "#/$defs/d0"} for at in range(2000)}}):
        with pytest.raises(BadRequest, match="simplify"):
            of_coder(refused)
        assert xml_calls.value_of([Tool("f", "", refused)], "f", "x", "5") in ("5", 5)
    assert xml_calls.value_of([Tool("f", "", branching(60))], "f", "x", "5") == 5
    assert time.perf_counter() - begin < 2


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"a": {}}, "required": 5},
        {"properties": {"a": {}}, "required": None},
        {"properties": {"a": {"anyOf": 5}}},
        {"properties": {"a": {"oneOf": None}}},
        {"properties": {"a": {"enum": 5}}},
        {"properties": {"a": {"anyOf": [{"enum": "ab"}]}}},
        {"properties": 5},
    ],
)
def test_malformed_schemas_are_the_callers_to_correct(schema: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match="correct it"):
        of_coder(schema)
    assert xml_calls.value_of([Tool("f", "", schema)], "f", "a", "\n[1\n") == "[1"  # where no call was forced


@pytest.mark.parametrize("arguments", ["{broken", "[1]", "5", '{"a": "\\ud800"}', "[" * 100_000])
def test_earlier_arguments_that_are_no_object_stand_as_they_came(arguments: str) -> None:
    assert QWEN3_CODER.written([Call("f", arguments)]) == (
        f"<tool_call>\n<function=f>\n{arguments}\n</function>\n</tool_call>"
    )


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_odd_names_do_not_break_a_grammar(matcher: Matcher, form: ToolFormat) -> None:
    for name in ('say "hi"', "back\\slash", "a/b", "é", "%json {", "{x}", "#", "'", "a | b", "NAME"):
        schema: dict[str, Any] = {"properties": {'"': {"type": "string", "description": '/"\\\n%é'}}}
        tools = [Tool(name, '"\n"', schema), WEATHER]
        assert matcher.accepts(form, form.written([Call(name, '{"\\"": "x"}')]), tools), name
        assert matcher.accepts(form, form.written([PARIS]), tools), name


def test_a_schema_beyond_the_library_is_an_error_for_strict_tools_only(matcher: Matcher) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    assert matcher.accepts(HERMES, HERMES.written([Call("f", '{"a": [1]}')]), [Tool("f", "", schema)])
    with pytest.raises(AssertionError, match="uniqueItems"):
        matcher.accepts(HERMES, "", [Tool("f", "", schema, strict=True)])

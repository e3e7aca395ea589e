"""How families of models write calls of tools: markers, the text of a call, and the grammar that forces one.

A call is a text before its arguments, the arguments' JSON, and a text behind; all calls may stand in a section.
Reading is in `tool_reader.py`. This file knows no tokenizer: callers say which markers are tokens of their own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from jinja2 import TemplateError, nodes
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from loreloop.text.chat import Generation
from loreloop.text.tool_calls import Call, Tool

MOST_CALLS = 8  # that a grammar for several lets a model write
NAME, NUMBER = "\ue000", "\ue001"  # stand for a call's tool and place in the text of a format

_SPACE = "[ \\t\\n]{0,32}"  # between JSON's signs: bounded, or a weak model writes space for ever
_ANY = r"(.|\n)"
_SIGNS = re.compile(r'"(?:[^"\\]|\\.)*"|\s+|[^"\s]')  # strings, spaces and signs of JSON


@dataclass(frozen=True)
class ToolFormat:
    """`shape` says how a call is read; the other texts are those of the models' published templates."""

    name: str
    shape: Literal["object", "message", "kimi", "deepseek"]
    before: str  # a call up to its arguments
    behind: str  # and behind them
    between: str = ""  # two calls
    call: tuple[str, str] = ("", "")  # the markers around one call
    section: tuple[str, str] = ("", "")  # and around all
    inner: str = ""  # the marker between a call's name and its arguments

    @property
    def markers(self) -> tuple[str, ...]:
        return tuple(marker for marker in (*self.section, *self.call, self.inner) if marker)

    def written(self, calls: Sequence[Call]) -> str:
        """What a model of this family writes to make these calls."""
        texts = [self._before(call.name, str(at)) + call.arguments + self.behind for at, call in enumerate(calls)]
        return self.section[0] + self.between.join(texts) + self.section[1] if texts else ""

    def instructions(self, tools: Sequence[Tool]) -> str:
        """System text for a model whose own template does not speak of tools."""
        example = Call("name of the function", '{"name of an argument": "its value"}')
        lines = [
            "You can call functions. Each line here describes one, with the JSON schema of its arguments:",
            *(json.dumps(tool.as_function(), ensure_ascii=False) for tool in tools),
            "",
            "To call a function, write its name and a JSON object of its arguments in exactly this form:",
            self.written([example]),
            "",
            "To make several calls, write them one behind the other in the same form. Then stop: the next message "
            "brings the results. If no function helps, answer without a call.",
        ]
        return "\n".join(lines)

    def grammar(
        self,
        tools: Sequence[Tool],
        *,
        at_least_one: bool,
        parallel: bool,
        special: Callable[[str], bool],
        answer: dict[str, Any] | None = None,
    ) -> str:
        """A grammar in llguidance's Lark: one call or up to eight, with arguments that satisfy their tools' schemas.

        `special` says which markers are tokens that were added to the model's vocabulary (also those that its tokenizer
        does not call special); the others are ordinary text. Without `at_least_one` there may be a text without calls
        instead of them or, where markers begin calls, before them; with the JSON schema `answer` one that satisfies it,
        instead of them.
        """
        first = self.section[0] or self.call[0]

        def lark(text: str) -> str:
            # Without a marker only JSON's signs tell a call from an answer, and the library's lexer never goes back.
            pieces = _SIGNS.findall(text) if answer is not None and not first else [text]
            return " ".join(_lark(piece, self.markers, special) for piece in pieces)

        options = []
        for tool in tools:
            before = self._before(tool.name, NUMBER).removeprefix("" if self.section[0] else first)
            options.append(f"{lark(before)} %json {json.dumps(_schema(tool))} {lark(self.behind)}")
        again = "" if self.section[0] else lark(first)
        more = f"({lark(self.between)} {again} call){{0,{MOST_CALLS - 1}}}" if parallel else ""
        is_special = bool(first) and special(first)
        if answer is None:
            start = _start(first, at_least_one=at_least_one, special=is_special)
        else:
            start = [
                f"start: answer | {first if is_special else json.dumps(first) if first else ''} calls",
                f"answer: %json {json.dumps({**answer, 'x-guidance': {'whitespace_flexible': False}})}",
            ]
        lines = [
            *start,
            f"calls: call {more} {lark(self.section[1])}",
            "call: " + "\n    | ".join(options),
            "NUMBER: /[0-9]{1,4}/",
        ]
        return "\n".join(lines) + "\n"

    def _before(self, name: str, number: str) -> str:
        in_json = self.shape in ("object", "message")
        return self.before.replace(NUMBER, number).replace(NAME, json.dumps(name) if in_json else name)


HERMES = ToolFormat(
    "hermes",
    "object",
    before=f'<tool_call>\n{{"name": {NAME}, "arguments": ',
    behind="}\n</tool_call>",
    between="\n",
    call=("<tool_call>", "</tool_call>"),
)
LLAMA3 = ToolFormat(
    "llama3", "message", before=f'{{"name": {NAME}, "parameters": ', behind="}", between="; ", inner="<|python_tag|>"
)
KIMI_K2 = ToolFormat(
    "kimi_k2",
    "kimi",
    before=f"<|tool_call_begin|>functions.{NAME}:{NUMBER}<|tool_call_argument_begin|>",
    behind="<|tool_call_end|>",
    call=("<|tool_call_begin|>", "<|tool_call_end|>"),
    section=("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
    inner="<|tool_call_argument_begin|>",
)
DEEPSEEK_V31 = ToolFormat(
    "deepseek_v31",
    "deepseek",
    before=f"<｜tool▁call▁begin｜>{NAME}<｜tool▁sep｜>",
    behind="<｜tool▁call▁end｜>",
    call=("<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"),
    section=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
    inner="<｜tool▁sep｜>",
)
# Both are read alike; a model is forced to write the one that its template shows.
DEEPSEEK = ToolFormat(
    "deepseek",
    "deepseek",
    before=f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{NAME}\n```json\n",
    behind="\n```<｜tool▁call▁end｜>",
    between="\n",
    call=DEEPSEEK_V31.call,
    section=DEEPSEEK_V31.section,
    inner=DEEPSEEK_V31.inner,
)


@lru_cache(maxsize=64)
def format_of(template: str | None) -> ToolFormat:
    """The format whose markers a model's chat template shows; that of Hermes if it shows none."""
    source = template or ""
    if KIMI_K2.section[0] in source:
        return KIMI_K2
    if DEEPSEEK.section[0] in source:
        return DEEPSEEK if "```json" in source else DEEPSEEK_V31
    if HERMES.call[0] in source:
        return HERMES
    if LLAMA3.inner in source or re.search(r'"name": .*"parameters": ', source, re.DOTALL):
        return LLAMA3
    return HERMES


@lru_cache(maxsize=64)
def knows_tools(template: str | None) -> bool:
    """Whether a chat template does something with the variable `tools`."""
    try:
        environment = ImmutableSandboxedEnvironment(extensions=[Generation, loopcontrols])
        tree = environment.parse(template or "")
    except TemplateError:
        return False  # rendering it says what is wrong
    return any(name.name == "tools" and name.ctx == "load" for name in tree.find_all(nodes.Name))


def _start(first: str, *, at_least_one: bool, special: bool) -> list[str]:
    """The rules up to the first call's own text, behind the marker `first`."""
    if not first:
        # Only how a message begins makes it a call or none.
        return [
            "start: calls" + ("" if at_least_one else " | text"),
            *([] if at_least_one else [rf"text: /([^{{<\s]{_ANY}*)?/"]),
        ]
    mark = first if special else json.dumps(first)
    if at_least_one:
        return [f"start: {mark} calls"]
    if special:
        return [f"start: text ({mark} calls)?", f"text: /{_ANY}*/"]
    # A lazy lexeme ends with the marker, which a text without calls does not hold.
    return [
        "start: TEXT | lead calls",
        f"TEXT: /{_ANY}*/ & ~/{_ANY}*{re.escape(first)}{_ANY}*/",
        f"lead[lazy]: /{_ANY}*{re.escape(first)}/",
    ]


def _lark(text: str, markers: Sequence[str], special: Callable[[str], bool]) -> str:
    """A fixed text as a sequence of Lark's terms."""
    signs = [NUMBER, *(marker for marker in markers if special(marker))]
    parts = re.split(f"({'|'.join(map(re.escape, signs))})", text)
    terms = [
        json.dumps(part) if at % 2 == 0 else part.replace(NUMBER, "NUMBER") for at, part in enumerate(parts) if part
    ]
    return " ".join(terms)


def _schema(tool: Tool) -> dict[str, Any]:
    """Arguments are always an object; a schema beyond what llguidance knows is an error for strict tools only."""
    guidance = {"whitespace_pattern": _SPACE, "lenient": not tool.strict}
    return {**tool.parameters, "type": "object", "x-guidance": guidance}

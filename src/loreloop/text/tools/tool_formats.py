"""How families of models write calls of tools: markers, the text of a call, and the grammar that forces one.

A call is a text before its arguments, the arguments' JSON, and a text behind; all calls may stand in a section.
Reading is in `tool_reader.py`. This file knows no tokenizer: callers say which markers are tokens of their own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from jinja2 import TemplateError, nodes
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from loreloop.text.templates.chat_template import Generation
from loreloop.text.tools import harmony, xml_calls
from loreloop.text.tools.tool_calls import Call, Tool

MOST_CALLS = 8  # that a grammar for several lets a model write
NAME, NUMBER = "\ue000", "\ue001"  # stand for a call's tool and place in the text of a format

_SPACE = "[ \\t\\n]{0,32}"  # between JSON's signs: bounded, or a weak model writes space for ever
_ANY = r"(.|\n)"
_SIGNS = re.compile(r'"(?:[^"\\]|\\.)*"|\s+|[^"\s]')  # strings, spaces and signs of JSON


@dataclass(frozen=True)
class ToolFormat:
    """`shape` says how a call is read; the other texts are those of the models' published templates."""

    name: str
    shape: Literal["object", "message", "kimi", "deepseek", "list", "named", "xml", "harmony"]
    before: str  # a call up to its arguments
    behind: str  # and behind them
    between: str = ""  # two calls
    call: tuple[str, str] = ("", "")  # the markers around one call
    section: tuple[str, str] = ("", "")  # and around all
    inner: str = ""  # the marker between a call's name and its arguments
    inside: tuple[str, str] = ("", "")  # around all calls, within the section

    @property
    def markers(self) -> tuple[str, ...]:
        """All markers of the format, any of which may be a token of its own."""
        if self.shape == "harmony":
            return harmony.MARKERS
        return tuple(marker for marker in (*self.section, *self.call, self.inner) if marker)

    def written(self, calls: Sequence[Call]) -> str:
        """What a model of this family writes to make these calls."""
        if self.shape == "xml":
            texts = [self.call[0] + xml_calls.written(call) + self.call[1] for call in calls]
        else:
            texts = [
                self._before(call.name, str(index)) + call.arguments + self.behind for index, call in enumerate(calls)
            ]
        all_calls = self.inside[0] + self.between.join(texts) + self.inside[1]
        return self.section[0] + all_calls + self.section[1] if texts else ""

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
        special: Callable[[str], str | None],
        answer: dict[str, Any] | None = None,
    ) -> str:
        """A grammar in llguidance's Lark: one call or up to eight, with arguments that satisfy their tools' schemas.

        `special` says how a grammar writes a marker that is a token added to the model's vocabulary (also one that its
        tokenizer does not call special), and None for ordinary text. Without `at_least_one` there may be a text without
        calls instead of them or, where markers begin calls, before them; with the JSON schema `answer` one that
        satisfies it, instead of them.
        """
        first = self.section[0] or self.call[0]

        def lark(text: str) -> str:
            # Without a marker only JSON's signs tell a call from an answer, and the library's lexer never goes back.
            pieces = _SIGNS.findall(text) if answer is not None and not first else [text]
            return " ".join(_lark(piece, self.markers, special) for piece in pieces)

        options = []
        for tool in tools:
            if self.shape == "xml":
                options.append(xml_calls.rule(tool, lark, _guidance(tool)) + lark(self.call[1]))
                continue
            before = self._before(tool.name, NUMBER).removeprefix("" if self.section[0] else first)
            options.append(f"{lark(before)} %json {json.dumps(_schema(tool))} {lark(self.behind)}")
        again = "" if self.section[0] else lark(first)
        more = f"({lark(self.between)} {again} call){{0,{MOST_CALLS - 1}}}" if parallel else ""
        mark = (special(first) or json.dumps(first)) if first else ""
        if answer is None:
            start = _start(first, mark, at_least_one=at_least_one)
        else:
            start = [
                f"start: answer | {mark} calls",
                f"answer: %json {json.dumps({**answer, 'x-guidance': {'whitespace_flexible': False}})}",
            ]
        lines = [
            *start,
            f"calls: {lark(self.inside[0])} call {more} {lark(self.inside[1] + self.section[1])}",
            "call: " + "\n    | ".join(options),
            "NUMBER: /[0-9]{1,4}/",
            *([xml_calls.TEXT_RULE] if self.shape == "xml" else []),
        ]
        return "\n".join(lines) + "\n"

    def _before(self, name: str, number: str) -> str:
        in_json = self.shape in ("object", "message", "list")
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
QWEN3_CODER = ToolFormat("qwen3_coder", "xml", before="", behind="", between="\n", call=("<tool_call>", "</tool_call>"))
MISTRAL = ToolFormat(
    "mistral", "named", before=f"[TOOL_CALLS]{NAME}[ARGS]", behind="", call=("[TOOL_CALLS]", ""), inner="[ARGS]"
)
MISTRAL_LIST = ToolFormat(
    "mistral_list",
    "list",
    before=f'{{"name": {NAME}, "arguments": ',
    behind="}",
    between=", ",
    section=("[TOOL_CALLS]", ""),
    inside=("[", "]"),
)
HARMONY = ToolFormat(
    "harmony",
    "harmony",
    before=f"{harmony.CHANNEL}commentary to={harmony.FUNCTIONS}{NAME} {harmony.CONSTRAIN}json{harmony.MESSAGE}",
    behind=harmony.CALL,
    call=(harmony.CHANNEL, harmony.CALL),
)


@lru_cache(maxsize=64)
def format_of(template: str | None) -> ToolFormat:
    """The format whose markers a model's chat template shows; that of Hermes if it shows none."""
    source = template or ""
    if harmony.CHANNEL in source and harmony.MESSAGE in source:
        return HARMONY
    if KIMI_K2.section[0] in source:
        return KIMI_K2
    if DEEPSEEK.section[0] in source:
        return DEEPSEEK if "```json" in source else DEEPSEEK_V31
    if MISTRAL.call[0] in source:
        return MISTRAL if MISTRAL.inner in source else MISTRAL_LIST
    if "<function=" in source and "<parameter=" in source:
        return QWEN3_CODER
    if HERMES.call[0] in source:
        return HERMES
    if LLAMA3.inner in source or re.search(r'"name": .*"parameters": ', source, re.DOTALL):
        return LLAMA3
    return HERMES


def token_term(added: Mapping[str, int], marker: str) -> str | None:
    """How a grammar writes a marker that is one of these tokens: by its text in angles, else by its number."""
    if marker not in added:
        return None
    return marker if re.fullmatch(r"<[^<>]*>", marker) else f"<[{added[marker]}]>"


@lru_cache(maxsize=64)
def knows_tools(template: str | None) -> bool:
    """Whether a chat template does something with the variable `tools`."""
    try:
        environment = ImmutableSandboxedEnvironment(extensions=[Generation, loopcontrols])
        tree = environment.parse(template or "")
    except TemplateError:
        return False  # rendering it says what is wrong
    return any(name.name == "tools" and name.ctx == "load" for name in tree.find_all(nodes.Name))


def _start(first: str, mark: str, *, at_least_one: bool) -> list[str]:
    """The rules up to the first call's own text, behind the marker `first`, which a grammar writes as `mark`."""
    if not first:
        # Only how a message begins makes it a call or none.
        return [
            "start: calls" + ("" if at_least_one else " | text"),
            *([] if at_least_one else [rf"text: /([^{{<\s]{_ANY}*)?/"]),
        ]
    if at_least_one:
        return [f"start: {mark} calls"]
    if mark != json.dumps(first):
        return [f"start: text ({mark} calls)?", f"text: /{_ANY}*/"]
    # A lazy lexeme ends with the marker, which a text without calls does not hold.
    return [
        "start: TEXT | lead calls",
        f"TEXT: /{_ANY}*/ & ~/{_ANY}*{re.escape(first)}{_ANY}*/",
        f"lead[lazy]: /{_ANY}*{re.escape(first)}/",
    ]


def _lark(text: str, markers: Sequence[str], special: Callable[[str], str | None]) -> str:
    """A fixed text as a sequence of Lark's terms."""
    written = {NUMBER: "NUMBER"} | {marker: term for marker in markers if (term := special(marker))}
    parts = re.split(f"({'|'.join(map(re.escape, written))})", text)
    return " ".join(written[part] if index % 2 else json.dumps(part) for index, part in enumerate(parts) if part)


def _schema(tool: Tool) -> dict[str, Any]:
    """Arguments are always an object; a schema beyond what llguidance knows is an error for strict tools only."""
    return {**tool.parameters, "type": "object", "x-guidance": _guidance(tool)}


def _guidance(tool: Tool) -> dict[str, Any]:
    return {"whitespace_pattern": _SPACE, "lenient": not tool.strict}

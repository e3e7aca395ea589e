"""A model's own chat templates, rendered in Jinja's sandbox.

Messages in, prompt text out. A template comes from the model's folder and is treated as untrusted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from loreloop.protocol.errors import BadRequest, outcome_of
from loreloop.text.resource_limits import LimitExceeded, limited
from loreloop.text.templates.files import DEFAULT, TOOL_USE, read_templates
from loreloop.text.tokenizer import TextTokenizer

Message = dict[str, Any]
MAX_POWER, MAX_REPEATED = 1000, 1 << 20
MAX_SECONDS, MAX_BYTES = 2.0, 512 << 20  # of one rendering; ordinary ones take milliseconds


class Generation(Extension):
    """`{% generation %}…{% endgeneration %}`, with which templates mark what the assistant says; shown as it is."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own form)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Reads the block and passes its body on; Jinja calls this at each opening tag."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return [nodes.Scope(body, lineno=line)]  # what is set in there does not last, as in transformers


class Sandbox(ImmutableSandboxedEnvironment):
    """Refuses products and powers that one step of the interpreter could take for ever on."""

    intercepted_binops = frozenset(("*", "**"))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """The result of `*` or `**`; TemplateError where it would be larger than any template needs."""
        numbers = [abs(x) for x in (left, right) if isinstance(x, int | float)]
        lengths = [len(x) for x in (left, right) if isinstance(x, str | list)]
        # One operation of Python cannot be interrupted by a signal, so the time limit alone would not help here.
        if operator == "**" and max(numbers, default=0) > MAX_POWER:
            raise TemplateError(f"a power of numbers over {MAX_POWER}")
        if operator == "*" and lengths and math.prod((*numbers, *lengths)) > MAX_REPEATED:
            raise TemplateError(f"a text repeated to over {MAX_REPEATED} characters")
        return super().call_binop(context, operator, left, right)


class ChatTemplate:
    """Renders conversations; says so if the model has no template called `name`. `source` is its text."""

    def __init__(self, folder: Path, tokenizer: TextTokenizer, name: str = DEFAULT) -> None:
        self.folder, self.tokenizer, self.name = folder, tokenizer, name
        self.sources = read_templates(folder, tokenizer.settings)
        self.source = self.sources.get(name)
        environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
        environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
        environment.filters["tojson"] = _to_json
        self.environment = environment

    @cached_property
    def with_tools(self) -> ChatTemplate:
        """The one for a conversation that has tools."""
        return ChatTemplate(self.folder, self.tokenizer, TOOL_USE) if TOOL_USE in self.sources else self

    @cached_property
    def _template(self) -> Template:
        return self.environment.from_string(self.source or "")

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **extra: Any) -> str:
        """The prompt of these messages; `extra` are further variables for the template. BadRequest where there is no
        template, or it refuses, fails, or takes too much time or memory."""
        if self.source is None:
            have = f", only {', '.join(map(repr, self.sources))}" if self.sources else ""
            raise BadRequest(f"This model has no chat template{have}; use completions with a prompt of your own.")
        named = {"tools": None, "documents": None, **self.tokenizer.named, **extra}
        too_much = f"The model's chat template takes over {MAX_SECONDS:g} s or {MAX_BYTES >> 20} MiB on these messages."
        try:
            with limited(MAX_SECONDS, MAX_BYTES):
                # A template is foreign code, and raises anything.
                rendered = outcome_of(
                    lambda: self._template.render(
                        messages=list(messages), add_generation_prompt=add_generation_prompt, **named
                    )
                )
        except LimitExceeded:
            raise BadRequest(too_much) from None
        if isinstance(rendered, MemoryError):
            raise BadRequest(too_much)
        if isinstance(rendered, Exception):
            raise BadRequest(f"The model's chat template does not accept these messages: {rendered}")
        return rendered


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike Jinja's own filter it escapes nothing for HTML; takes what transformers' takes, in its order."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

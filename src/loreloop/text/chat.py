"""A model's own chat template, rendered in Jinja's sandbox.

Messages in, prompt text out. The template comes from the model's folder and is treated as untrusted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from loreloop.protocol.errors import BadRequest
from loreloop.text.bounded import TooMuch, bounded
from loreloop.text.tokenizer import TextTokenizer

Message = dict[str, Any]
MAX_POWER, MAX_REPEATED = 1000, 1 << 20
MAX_SECONDS, MAX_BYTES = 2.0, 512 << 20  # of one rendering; ordinary ones take milliseconds


class Generation(Extension):
    """`{% generation %}…{% endgeneration %}`, with which templates mark what the assistant says; shown as it is."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own form)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Sandbox(ImmutableSandboxedEnvironment):
    """Refuses products and powers that one step of the interpreter could take for ever on."""

    intercepted_binops = frozenset(("*", "**"))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        numbers = [abs(x) for x in (left, right) if isinstance(x, int | float)]
        lengths = [len(x) for x in (left, right) if isinstance(x, str | list)]
        if operator == "**" and max(numbers, default=0) > MAX_POWER:
            raise TemplateError(f"a power of numbers over {MAX_POWER}")
        if operator == "*" and lengths and math.prod((*numbers, *lengths)) > MAX_REPEATED:
            raise TemplateError(f"a text repeated to over {MAX_REPEATED} characters")
        return super().call_binop(context, operator, left, right)


class ChatTemplate:
    """Renders conversations; says so if the model has no template."""

    def __init__(self, folder: Path, tokenizer: TextTokenizer) -> None:
        self.settings = tokenizer.settings
        source = _source(folder, tokenizer.settings)
        environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
        environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
        environment.filters["tojson"] = _to_json
        self.source, self.environment = source, environment
        self.compiled: Template | None = None

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **extra: Any) -> str:
        if self.source is None:
            raise BadRequest("This model has no chat template; use completions with a prompt of your own.")
        specials = {
            name: _text(self.settings.get(name)) for name in ("bos_token", "eos_token", "pad_token", "unk_token")
        }
        present = {name: token for name, token in specials.items() if token is not None}
        try:
            with bounded(MAX_SECONDS, MAX_BYTES):
                self.compiled = self.compiled or self.environment.from_string(self.source)
                return self.compiled.render(
                    messages=list(messages),
                    add_generation_prompt=add_generation_prompt,
                    **{"tools": None, "documents": None, **present, **extra},
                )
        except (TooMuch, MemoryError):
            raise BadRequest(
                f"The model's chat template takes over {MAX_SECONDS:g} s or {MAX_BYTES >> 20} MiB on these messages."
            ) from None
        except (TemplateError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
            raise BadRequest(f"The model's chat template does not accept these messages: {error}") from None


def _source(folder: Path, settings: dict[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.exists():
        return file.read_text()
    older = folder / "chat_template.json"  # how processors of vision models kept theirs
    template = (json.loads(older.read_text()) if older.exists() else settings).get("chat_template")
    if isinstance(template, list):
        template = next((entry["template"] for entry in template if entry["name"] == "default"), None)
    return template


def _text(token: str | dict[str, Any] | None) -> str | None:
    return token["content"] if isinstance(token, dict) else token


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _to_json(value: object, **options: Any) -> str:
    """Unlike Jinja's own filter it escapes nothing for HTML; `options` are those of json.dumps."""
    return json.dumps(value, **{"ensure_ascii": False, **options})

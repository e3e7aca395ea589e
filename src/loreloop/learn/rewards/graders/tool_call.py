"""A check of ours on an answer's tool calls: how many, of which tools, with which arguments."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from loreloop.learn.rewards.graders.form_checks import schema_fault
from loreloop.learn.rewards.graders.grader import Form, Given, Grade, Means
from loreloop.learn.rewards.graders.schema_check import first_fault, same, unknown_keywords
from loreloop.learn.rewards.graders.templates import check_template, value_of
from loreloop.protocol.errors import outcome_of
from loreloop.text.tools.json_scan import strict_json

Name = Annotated[str, Meta(min_length=1, max_length=256)]


class AllowedTool(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tool that may be called, with the schema of its arguments."""

    name: Name
    parameters: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.parameters is not None:
            if unknown := unknown_keywords(self.parameters):
                raise ValueError(f"`{unknown[0]}`: this keyword is not checked here")
            tried = outcome_of(lambda: first_fault(self.parameters, {}))
            if isinstance(tried, Exception):
                raise ValueError(f"`parameters`: {tried}")


class WantedCall(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A call that the answer should make; texts among its arguments may be templates. None: any arguments."""

    name: Name
    arguments: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        for name, value in (self.arguments or {}).items():
            for text in _texts(value):
                check_template(f"arguments.{name}", text)


class ToolCall(Form, frozen=True, kw_only=True, tag="tool_call"):
    """The share of an answer's calls that are in form: JSON objects as arguments, tools that there are, arguments that
    fit. With `wanted`, 1 only where those calls were made, in their order, and no others."""

    tools: tuple[AllowedTool, ...] | None = None
    wanted: Annotated[tuple[WantedCall, ...], Meta(min_length=1, max_length=64)] | None = None
    min_calls: Annotated[int, Meta(ge=0)] = 1
    max_calls: Annotated[int, Meta(ge=0)] | None = None

    async def grade(self, given: Given, means: Means) -> Grade:
        """From 0 to 1; the parts are `form` and, where calls were wanted, `wanted`."""
        calls = given.answer.calls
        most = len(calls) if self.max_calls is None else self.max_calls
        if not self.min_calls <= len(calls) <= most:
            return Grade(0.0, {"form": 0.0})
        good = [await self._fits(call.name, call.arguments, means) for call in calls]
        parts = {"form": sum(good) / len(good) if good else 1.0}
        if self.wanted is None:
            return Grade(parts["form"], parts)
        parts["wanted"] = float(all(good) and self._as_wanted(given))
        return Grade(parts["wanted"], parts)

    async def _fits(self, name: str, arguments: str, means: Means) -> bool:
        value = _object(arguments)
        if value is None or self.tools is None:
            return value is not None
        # The first of that name counts, as it would for the model's own template.
        tool = next((tool for tool in self.tools if tool.name == name), None)
        if tool is None:
            return False
        return tool.parameters is None or await schema_fault(tool.parameters, value, means) is None

    def _as_wanted(self, given: Given) -> bool:
        assert self.wanted is not None
        calls = given.answer.calls
        return len(calls) == len(self.wanted) and all(
            call.name == want.name
            and (want.arguments is None or same(_object(call.arguments), _filled(want.arguments, given)))
            for call, want in zip(calls, self.wanted, strict=True)
        )


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)


def _filled(value: Any, given: Given) -> Any:
    if isinstance(value, str):
        return value_of(value, given)
    if isinstance(value, list):
        return [_filled(each, given) for each in value]
    return {name: _filled(each, given) for name, each in value.items()} if isinstance(value, dict) else value


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = strict_json(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None

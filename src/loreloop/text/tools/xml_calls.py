"""Calls as Qwen3-Coder writes them: parameters between tags, each value as plain text or, where it is no string, JSON.

    <function=NAME>
    <parameter=city>
    Oslo
    </parameter>
    </function>

The text alone does not say what is a string: the tool's schema does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from loreloop.protocol.errors import BadRequest
from loreloop.text.tools.json_scan import strict_json
from loreloop.text.tools.tool_calls import Call, Tool

MAX_STEPS = 1000  # through the choices and references of one tool's schema
PARAMETER_ENDS = "\n</parameter>\n"
TEXT_RULE = r"value[lazy]: /(.|\n)*\n<\/parameter>\n/"  # any text up to the first end of a parameter, and that


def written(call: Call) -> str:
    """What stands between a call's markers; earlier arguments that are no object stand as they came."""
    try:
        arguments = strict_json(call.arguments)
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        return f"\n<function={call.name}>\n{call.arguments}\n</function>\n"
    values = {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in arguments.items()
    }
    parameters = "".join(f"<parameter={name}>\n{value}{PARAMETER_ENDS}" for name, value in values.items())
    return f"\n<function={call.name}>\n{parameters}</function>\n"


def rule(tool: Tool, lark: Callable[[str], str], guidance: dict[str, Any]) -> str:
    """The same as a grammar's terms: parameters in the schema's order, those that are not required may be left out."""
    required, steps = _list(tool.parameters, "required"), _Steps(tool)
    if not isinstance(tool.parameters.get("properties", {}), dict):
        raise BadRequest(f"The tool {tool.name!r} has a schema whose properties are no object; correct it.")
    terms = [lark(f"\n<function={tool.name}>\n")]
    for name, schema in _properties(tool).items():
        if not name or set(name) & set("<>\n"):
            raise BadRequest(f"The parameter {name!r} of {tool.name!r} cannot be called in this model's format.")
        value = " ".join(_value(steps, schema, lark, guidance))
        one = f"{lark(f'<parameter={name}>' + chr(10))} {value}"
        terms.append(one if name in required else f"({one})?")
    return " ".join([*terms, lark("</function>\n")])


def value_of(tools: Sequence[Tool], function: str, parameter: str, text: str) -> Any:
    """A parameter's text as a value: as it is where the schema has a string, else as JSON if it is any."""
    text = text.removeprefix("\n").removesuffix("\n")
    tool = next((tool for tool in tools if tool.name == function), None)
    schema = _properties(tool).get(parameter) if tool else None
    if tool is None or schema is None:
        return text
    try:
        return text if _Steps(tool).lead_to_text(schema) else strict_json(text)
    except (BadRequest, ValueError):  # the schema says nothing of it, or it is no JSON
        return text


def _value(steps: _Steps, schema: Any, lark: Callable[[str], str], guidance: dict[str, Any]) -> Iterator[str]:
    plain = steps.resolved(schema)
    choices = _list(plain, "enum") or ([plain["const"]] if "const" in plain else [])
    if choices and all(isinstance(choice, str) for choice in choices):
        yield f"({' | '.join(lark(choice) or json.dumps('') for choice in choices)}) {lark(PARAMETER_ENDS)}"
    elif steps.lead_to_text(schema):
        yield "value"
    else:
        whole = {"anyOf": [schema], "x-guidance": guidance}
        parameters = steps.tool.parameters
        shared = {name: parameters[name] for name in ("$defs", "definitions") if name in parameters}
        yield f"%json {json.dumps(whole | shared)} {lark(PARAMETER_ENDS)}"


def _properties(tool: Tool) -> dict[str, Any]:
    found = tool.parameters.get("properties")
    return found if isinstance(found, dict) else {}


def _list(schema: dict[str, Any], name: str) -> list[Any]:
    found = schema.get(name, [])
    if not isinstance(found, list):
        raise BadRequest(f"A tool's schema has {name!r} that is no list, but {json.dumps(found)[:80]}; correct it.")
    return found


class _Steps:
    """Steps through one tool's schema, which may refer to itself; BadRequest past a number of them."""

    def __init__(self, tool: Tool) -> None:
        self.tool, self.left = tool, MAX_STEPS

    def lead_to_text(self, schema: Any) -> bool:
        """Whether values may be strings, which are then written as they are."""
        seen, ahead = set[str](), [schema]
        while ahead:
            plain = self.resolved(ahead.pop(), seen)
            kinds = plain.get("type")
            if kinds is None:
                options = _list(plain, "enum") or [plain[key] for key in ("const",) if key in plain]
                if any(isinstance(option, str) for option in options):
                    return True
                ahead += [*_list(plain, "anyOf"), *_list(plain, "oneOf")]
            elif kinds == "string" or (isinstance(kinds, list) and "string" in kinds):
                return True
        return False

    def resolved(self, schema: Any, seen: set[str] | None = None) -> dict[str, Any]:
        """The schema itself, or that of the tool's definitions which it refers to, if it is not among those seen."""
        seen = set() if seen is None else seen
        self._take()
        while isinstance(schema, dict) and str(schema.get("$ref", "")).startswith("#/"):
            reference = str(schema["$ref"])
            if reference in seen:
                return {}
            seen.add(reference)
            schema = self.tool.parameters
            for part in reference.removeprefix("#/").split("/"):
                self._take()
                schema = schema.get(part) if isinstance(schema, dict) else None
        return schema if isinstance(schema, dict) else {}

    def _take(self) -> None:
        self.left -= 1
        if self.left < 0:
            name = self.tool.name
            raise BadRequest(f"The tool {name!r} has a schema of over {MAX_STEPS} choices and references; simplify it.")

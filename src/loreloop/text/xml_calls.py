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
from loreloop.text.tool_calls import Call, Tool

PARAMETER_ENDS = "\n</parameter>\n"
TEXT_RULE = r"value[lazy]: /(.|\n)*\n<\/parameter>\n/"  # any text up to the first end of a parameter, and that


def written(call: Call) -> str:
    """What stands between a call's markers."""
    values = {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in json.loads(call.arguments).items()
    }
    parameters = "".join(f"<parameter={name}>\n{value}{PARAMETER_ENDS}" for name, value in values.items())
    return f"\n<function={call.name}>\n{parameters}</function>\n"


def rule(tool: Tool, lark: Callable[[str], str], guidance: dict[str, Any]) -> str:
    """The same as a grammar's terms: parameters in the schema's order, those that are not required may be left out."""
    required = tool.parameters.get("required", ())
    terms = [lark(f"\n<function={tool.name}>\n")]
    for name, schema in _properties(tool).items():
        if not name or set(name) & set("<>\n"):
            raise BadRequest(f"The parameter {name!r} of {tool.name!r} cannot be called in this model's format.")
        value = " ".join(_value(tool, schema, lark, guidance))
        one = f"{lark(f'<parameter={name}>' + chr(10))} {value}"
        terms.append(one if name in required else f"({one})?")
    return " ".join([*terms, lark("</function>\n")])


def value_of(tools: Sequence[Tool], function: str, parameter: str, text: str) -> Any:
    """A parameter's text as a value: as it is where the schema has a string, else as JSON if it is any."""
    text = text.removeprefix("\n").removesuffix("\n")
    tool = next((tool for tool in tools if tool.name == function), None)
    schema = _properties(tool).get(parameter) if tool else None
    if tool is None or schema is None or _is_text(tool, schema):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _value(tool: Tool, schema: Any, lark: Callable[[str], str], guidance: dict[str, Any]) -> Iterator[str]:
    plain = _resolved(tool, schema)
    choices = plain.get("enum") or ([plain["const"]] if "const" in plain else [])
    if choices and all(isinstance(choice, str) for choice in choices):
        yield f"({' | '.join(lark(choice) or json.dumps('') for choice in choices)}) {lark(PARAMETER_ENDS)}"
    elif _is_text(tool, schema):
        yield "value"
    else:
        whole = {"anyOf": [schema], "x-guidance": guidance}
        shared = {name: tool.parameters[name] for name in ("$defs", "definitions") if name in tool.parameters}
        yield f"%json {json.dumps(whole | shared)} {lark(PARAMETER_ENDS)}"


def _properties(tool: Tool) -> dict[str, Any]:
    found = tool.parameters.get("properties")
    return found if isinstance(found, dict) else {}


def _is_text(tool: Tool, schema: Any) -> bool:
    """Whether values may be strings, which are then written as they are."""
    plain = _resolved(tool, schema)
    kinds = plain.get("type")
    if kinds is None:
        options = plain.get("enum") or [plain[key] for key in ("const",) if key in plain]
        several = [*plain.get("anyOf", ()), *plain.get("oneOf", ())]
        return any(isinstance(o, str) for o in options) or any(_is_text(tool, s) for s in several if s != schema)
    return kinds == "string" or (isinstance(kinds, list) and "string" in kinds)


def _resolved(tool: Tool, schema: Any) -> dict[str, Any]:
    """The schema itself, or the one of the tool's definitions that it refers to."""
    if isinstance(schema, dict) and str(schema.get("$ref", "")).startswith("#/"):
        found: Any = tool.parameters
        for part in schema["$ref"].removeprefix("#/").split("/"):
            found = found.get(part) if isinstance(found, dict) else None
        schema = found
    return schema if isinstance(schema, dict) else {}

"""A command's options out of a struct's fields, with type, bounds, default and description; and a file of the same."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
from msgspec import inspect

AUTO = ("epochs", "batch_size", "learning_rate")  # by the rules of `learn/auto.py`, where they are not given
PICTURES = (".png", ".svg", ".pdf")
LARGE = 1 << 31
SHORT = {"learning_rate": "lr"}  # names that are long to type


def options_of(
    kind: type[msgspec.Struct], *, left_out: Collection[str] = (), auto: Collection[str] = ()
) -> list[click.Option]:
    """An option for each field. Those that are `auto` have no default: nothing given is None."""
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)
    return [_option(field, auto=field.name in auto) for field in info.fields if field.name not in left_out]


def _option(field: inspect.Field, *, auto: bool) -> click.Option:
    plain, about = field.type, ""
    while isinstance(plain, inspect.Metadata | inspect.UnionType):
        if isinstance(plain, inspect.UnionType):
            plain = next(one for one in plain.types if not isinstance(one, inspect.NoneType))
        else:
            about = (plain.extra_json_schema or {}).get("description", about)
            plain = plain.type
    flag, default = flag_of(field.name), None if auto else field.default
    if isinstance(plain, inspect.BoolType):
        return click.Option([f"{flag}/--no-{flag[2:]}", field.name], default=default, show_default=True, help=about)
    most = _first(plain, "le", "lt")
    bounds = {
        "min": _first(plain, "ge", "gt"),
        "max": None if most == LARGE else most,  # which nobody comes near
        "min_open": getattr(plain, "gt", None) is not None,
        "max_open": getattr(plain, "lt", None) not in (None, LARGE),
    }
    kind: click.ParamType[Any]
    match plain:
        case inspect.IntType():
            kind = click.IntRange(**bounds)
        case inspect.FloatType():
            kind = click.FloatRange(**bounds)
        case inspect.LiteralType(values=values):
            kind = click.Choice([str(value) for value in values])
        case _:
            kind = click.STRING
    about += "  [default: by a rule]" if auto else ""
    return click.Option([flag, field.name], type=kind, default=default, show_default=default is not None, help=about)


def flag_of(field: str) -> str:
    """The option of a struct's field."""
    return f"--{SHORT.get(field, field).replace('_', '-')}"


def _first(kind: inspect.Type, *names: str) -> Any:
    return next((value for name in names if (value := getattr(kind, name, None)) is not None), None)


def read_config(context: click.Context, parameter: click.Parameter, file: Path | None) -> None:
    """Makes a file's values the defaults of the command's options, of which it has the names."""
    if file is None:
        return
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise click.BadParameter(f"{file} cannot be read: {error}.") from None
    known = {name: option.name for option in context.command.params for name in names_of(option)}
    for name in values:
        if name not in known:
            raise click.BadParameter(f"{file} holds {name!r}, which is no option of this command.")
    # A table is an option whose value is JSON, which a file says better in its own form.
    context.default_map = {
        known[name]: json.dumps(value) if isinstance(value, dict) else value for name, value in values.items()
    }


def names_of(option: click.Parameter) -> Iterator[str]:
    """By which names a file may call an option: `batch-size` and `batch_size`, say."""
    for name in (option.name or "", *(each.lstrip("-") for each in option.opts)):
        yield from (name, name.replace("-", "_"))


def check_picture(context: click.Context, parameter: click.Parameter, file: Path | None) -> Path | None:
    """Refuses a kind of picture that could not be drawn, before the run and not behind it."""
    if file is not None and file.suffix not in PICTURES:
        raise click.BadParameter(f"{file} must end in {', '.join(PICTURES)}.")
    return file

"""Settings: whatever a file holds is taken, or refused with the name of what is wrong, and the flag that sets it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loreloop.cli.main import cli
from loreloop.config import FLAGS, Config, EngineConfig, LimitConfig, SessionConfig, load_config
from loreloop.protocol.errors import WrongSettings

TABLES: dict[str, Any] = {"": Config, "engine": EngineConfig, "session": SessionConfig, "limits": LimitConfig}
SETTINGS = [
    (table, field.name)
    for table, kind in TABLES.items()
    for field in msgspec.structs.fields(kind)
    if field.name not in TABLES
]
NUMBERS = [
    (table, field.name)
    for table, kind in TABLES.items()
    for field in msgspec.structs.fields(kind)
    if isinstance(field.default, int | float) and not isinstance(field.default, bool)
]
VALUES = st.one_of(
    st.integers(-(2**70), 2**70),
    st.integers(-3, 3),
    st.floats(),
    st.booleans(),
    st.text(max_size=8),
    st.lists(st.one_of(st.text(max_size=4), st.integers()), max_size=3),
    st.dictionaries(st.text(max_size=4), st.one_of(st.text(max_size=4), st.integers()), max_size=2),
)


def toml(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case float():
            return {math.inf: "inf", -math.inf: "-inf"}.get(value, "nan" if math.isnan(value) else repr(value))
        case list():
            return f"[{', '.join(map(toml, value))}]"
        case dict():
            return "{" + ", ".join(f"{toml(str(k))} = {toml(v)}" for k, v in value.items()) + "}"
        case str():
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    return str(value)


def loaded(file: Path, table: str, name: str, value: object) -> Config:
    lines = [f"[{table}]"] if table else []
    file.write_text("\n".join([*lines, f"{name} = {toml(value)}"]), encoding="utf-8")
    return load_config(str(file), {})


def taken_or_refused(load: Callable[[], Config]) -> Config | str:
    try:
        return load()
    except WrongSettings as error:
        return error.message


@given(setting=st.sampled_from(SETTINGS), value=VALUES)
def test_a_value_is_taken_or_refused_by_its_settings_name(
    tmp_path_factory: pytest.TempPathFactory, setting: tuple[str, str], value: object
) -> None:
    table, name = setting
    full = f"{table}.{name}".removeprefix(".")
    file = tmp_path_factory.getbasetemp() / "settings.toml"
    config = taken_or_refused(lambda: loaded(file, table, name, value))
    if isinstance(config, str):
        assert all(words in config for words in (f"`{full}", FLAGS.get(full, ""), "settings.toml"))
        return
    taken = getattr(getattr(config, table) if table else config, name)
    assert taken == (tuple(value) if isinstance(value, list) else value)
    if isinstance(taken, int | float):
        assert 0 <= taken < 2**31


@pytest.mark.parametrize(("table", "name"), NUMBERS)
def test_no_number_may_be_negative_or_endless(tmp_path: Path, table: str, name: str) -> None:
    for value in (-1, -(2**70), 2**70, math.nan, math.inf):
        with pytest.raises(WrongSettings, match=f"`{table}.{name}`".replace("`.", "`")):
            loaded(tmp_path / "settings.toml", table, name, value)


@given(st.text(max_size=40))
def test_any_text_is_settings_or_refused_with_its_place(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    file = tmp_path_factory.getbasetemp() / "text.toml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    config = taken_or_refused(lambda: load_config(str(file), {}))
    assert isinstance(config, Config) or "text.toml" in config


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("port = 1\nhost = \n", "settings.toml, line 2, column 8: Invalid value"),
        ("port = 1\n\n[engine", "settings.toml, line 3, column 8"),
        ("port = 1\nport = 2", "settings.toml, line 2"),
        ("thread = 3", "There is no setting `thread` in "),
        ("[engine]\nthread = 3", "There is no setting `engine.thread` in "),
        ("engine = 3", "`engine` is wrong"),
        ("models = []", "`models` (--model) is wrong"),
        ('models = [""]', "`models[0]` (--model) is wrong"),
        ("x = " + "[" * 5000, "nesting that nobody means"),
        ("port = 1" + "0" * 5000, "number"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "settings.toml").write_text(text)
    with pytest.raises(WrongSettings) as refused:
        load_config(str(tmp_path / "settings.toml"), {"engine": {"threads": 1}})
    assert said in refused.value.message


def test_a_flag_that_is_wrong_is_named() -> None:
    with pytest.raises(WrongSettings, match=r"`engine.threads` \(--threads\) is wrong: expected `int` >= 0"):
        load_config(None, {"engine": {"threads": -3}})
    with pytest.raises(WrongSettings, match=r"`port` \(--port\) is wrong"):
        load_config(None, {"port": 70000})


def test_the_flags_are_those_of_serve() -> None:
    options = {option for parameter in cli.commands["serve"].params for option in parameter.opts}
    assert set(FLAGS.values()) <= options
    assert options - set(FLAGS.values()) == {"--config", "--parent-pid"}

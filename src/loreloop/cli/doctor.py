"""`loreloop doctor`: what is wrong with a set-up, and whether an engine agrees with itself on a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import click

from loreloop.cli.tables import JSON, harmless

if TYPE_CHECKING:
    from loreloop.config import Config
    from loreloop.host.findings import Finding
    from loreloop.host.server_plan import Address

SECONDS = 5.0  # for a server to say that it is there


@click.command()
@click.option(
    "--model",
    metavar="NAME",
    help="Load this model and compare what sampling and training say of it: a name of `loreloop models list`, or a "
    "folder.",
)
@click.option("--data", "data_dir", metavar="DIR", help="The data folder.  [default: ~/.local/share/loreloop]")
@click.option(
    "--config",
    "config_file",
    type=click.Path(exists=True, dir_okay=False),
    help="The TOML file that the server is started with.  [default: the settings of the running server]",
)
@JSON
def doctor(model: str | None, data_dir: str | None, config_file: str | None, as_json: bool) -> None:
    """Say what is wrong with this set-up, and what to do about it; exit code 1 where something is.

    With --model the model is loaded here, beside a running server, and scored in pieces and whole, alone and beside
    others, by sampling and by training.
    """
    import sys

    from loreloop.cli.doctor_model import model_findings
    from loreloop.config import load_config

    config = load_config(config_file, {"data_dir": data_dir} if data_dir else {})
    address = _address(config)
    if address is not None and config_file is None:
        config = _settings_of(config)
    found = _shown(set_up(config, address), as_json=as_json)
    if model is not None:
        found += _shown(model_findings(config, model), as_json=as_json)
    _print(found, as_json)
    if any(each.state == "wrong" for each in found):
        sys.exit(1)


def set_up(config: Config, address: Address | None) -> Iterator[Finding]:
    """All that is looked at without loading a model; what is quick comes first."""
    from loreloop.cli.doctor_machine import machine
    from loreloop.cli.doctor_packages import packages
    from loreloop.host.findings import folder_findings, machine_findings, port_finding, server_finding

    yield from packages()
    yield from folder_findings(config)
    yield server_finding(config, address, answers=address is not None and _answers(address))
    if address is None:
        yield port_finding(config)
    yield from _keys(config)
    yield from machine_findings()
    yield from machine(config)


def _shown(findings: Iterable[Finding], *, as_json: bool) -> list[Finding]:
    """Each is shown as soon as it is found, since some take a while; for a program all together, at the end."""
    found = []
    for each in findings:
        found.append(each)
        if not as_json:
            click.echo(f"{each.state:8} {each.what:22} {harmless(each.found)}".rstrip())
            if each.advice:
                click.echo(f"{'':31} → {harmless(each.advice)}")
    return found


def _print(found: list[Finding], as_json: bool) -> None:
    import json

    import msgspec

    if as_json:
        click.echo(json.dumps([msgspec.to_builtins(each) for each in found]))
        return
    counts = {state: sum(each.state == state for each in found) for state in ("wrong", "warning")}
    click.echo(f"\n{counts['wrong']} wrong, {counts['warning']} to look at, of {len(found)} things.")


def _address(config: Config) -> Address | None:
    """Where the server of the data folder answers, if it runs; None also where the folder cannot be looked into, which
    a finding of its own tells."""
    from loreloop.host.server_plan import running_address

    try:
        return running_address(config)
    except OSError:
        return None


def _settings_of(config: Config) -> Config:
    """Those of the running server, as it was started with them; those that are given where they cannot be read."""
    import msgspec

    from loreloop.host.server_plan import ServerPlan, read_plan

    try:
        return read_plan(str(ServerPlan(config, {}).file)).config
    except (OSError, msgspec.DecodeError):  # of another user, or of another version
        return config


def _answers(address: Address) -> bool:
    """Whether the server of this start is heard at its address."""
    import httpx

    from loreloop.host.server_plan import NONCE

    try:
        answer = httpx.get(f"{address.url}/healthz", timeout=SECONDS, trust_env=False)
    except httpx.HTTPError:
        return False
    return answer.headers.get(NONCE) == address.nonce


def _keys(config: Config) -> Iterator[Finding]:
    """Whether somebody can get in, and whether this shell's key is one of them. Looked at without a lock and without
    the newest tables, so that neither a busy database nor an old one is touched."""
    import os
    import time

    from loreloop.host.findings import Finding
    from loreloop.protocol.errors import LoreloopError
    from loreloop.store.inspection import has_database, keys_seen

    if not has_database(config.data_path):
        yield Finding("keys", "ok", "none yet; the first start of a server makes one")
        return
    now, secret = time.time(), os.environ.get("TINKER_API_KEY", "")
    try:
        n_active, is_known = keys_seen(config.data_path, secret, now)
    except LoreloopError as error:
        yield Finding("database", "wrong", error.message, "docs/serving.md, under Damage, says what can be done")
        return
    advice = "" if n_active else "`loreloop keys create NAME` makes one"
    yield Finding("keys", "ok" if n_active else "warning", f"{n_active} can be used", advice)
    if secret and not is_known:
        found = "TINKER_API_KEY of this shell is no key of this data folder"
        yield Finding("key of this shell", "warning", found, "set it to one of this folder, or name another --data")

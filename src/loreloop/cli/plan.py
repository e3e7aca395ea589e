"""`loreloop plan`: what a run would take on given devices, from a model's configuration alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loreloop.cli.plan_simulation import Asked, simulate, simulation_options

if TYPE_CHECKING:
    from loreloop.parallel.mesh import Mesh
    from loreloop.plan.devices import Group
    from loreloop.plan.report import Report
    from loreloop.plan.wish import Base

POSITIVE = click.IntRange(min=1, max=1 << 31)


@click.command("plan")
@click.argument("model")
@click.option("--gpus", required=True, metavar="NxDEVICE", help="Devices, such as 8xH200.")
@click.option("--rank", default=32, show_default=True, type=POSITIVE, help="The adapter's rank.")
@click.option("--context", default=4096, show_default=True, type=POSITIVE, help="Tokens of prompt and answer.")
@click.option("--batch", default=32, show_default=True, type=POSITIVE, help="Prompts of a step.")
@click.option("--group", default=8, show_default=True, type=POSITIVE, help="Answers to each prompt.")
@click.option("--response", default=2048, show_default=True, type=POSITIVE, help="Tokens of an answer.")
@click.option("--rows", default=4096, show_default=True, type=POSITIVE, help="Rows of a training micro-batch.")
@click.option(
    "--precision",
    default="published",
    show_default=True,
    type=click.Choice(["published", "bf16", "int4"]),
    help="Of the base's weights.",
)
@click.option(
    "--experts",
    default="shared_outer",
    show_default=True,
    type=click.Choice(["shared_outer", "per_expert"]),
    help="Which matrices of an adapter each routed expert has for itself.",
)
@click.option("--full", is_flag=True, help="Train all weights, and no adapter.")
@click.option("--kept", is_flag=True, help="Keep activations for the way back, and compute none of them twice.")
@click.option("--mesh", metavar="pp=2,tp=8", help="This layout alone.")
@simulation_options
@click.option(
    "--prices",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A TOML file with the price of one device an hour: H200 = 3.5.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def plan(model: str, gpus: str, prices: Path | None, mesh: str | None, *, as_json: bool, **numbers: Any) -> None:
    """Say what a step of reinforcement learning would take: memory by part, time, cost, and the best layouts.

    MODEL is a folder, a config.json or a hub id. Nothing is loaded, and nothing downloaded but a configuration. Exit
    code 1 where nothing fits.

    With --simulate, the whole loop is played on growing numbers of devices instead.
    """
    import sys

    from loreloop.plan.devices import parse_group
    from loreloop.plan.report import report_of
    from loreloop.plan.search import plan_of
    from loreloop.plan.wish import Wish, check_wish

    asked, group = Asked.of(numbers), parse_group(gpus)
    wish, base = Wish(**numbers), _base(model)
    check_wish(base, wish)
    only, costs = _mesh(mesh, base, group) if mesh else None, _prices(prices)
    price = costs.get(group.device.name)
    if asked.simulate and simulate(asked, base, wish, group, only, price=price, as_json=as_json):
        return
    found = plan_of(base, wish, group, only)
    report = report_of(base, wish, group, found, costs)
    _show(report, as_json=as_json)
    if not found.fitting:
        sys.exit(1)


def _mesh(text: str, base: Base, group: Group) -> Mesh:
    """The layout that was asked for; WrongSettings where it divides neither the model nor the devices."""
    from loreloop.parallel.mesh import check_mesh, parse_mesh
    from loreloop.protocol.errors import BadRequest, WrongSettings

    try:
        mesh = parse_mesh(text)
        check_mesh(base.spec, mesh)
    except BadRequest as error:
        raise WrongSettings(f"--mesh: {error.message}") from None
    if mesh.n_ranks > group.n:
        raise WrongSettings(f"--mesh {mesh} wants {mesh.n_ranks} devices, and --gpus {group} are {group.n}.")
    return mesh


def _base(model: str) -> Base:
    """The model by its configuration; WrongSettings where it has none that can be read, with what is spelled alike."""
    from loreloop.formats.configuration import spec_of
    from loreloop.formats.quantization import is_float8
    from loreloop.model.families.table import family_of
    from loreloop.plan.wish import Base
    from loreloop.protocol.errors import BadRequest, WrongSettings

    try:
        config, where = _config_of(model)
        spec = spec_of(config, where)
    except BadRequest as error:
        if near := _near(model):
            raise WrongSettings(f"{error.message} Did you mean {' or '.join(near)}?") from None
        raise WrongSettings(error.message) from None
    about = config.get("quantization_config") or (config.get("text_config") or {}).get("quantization_config") or {}
    # Blocks of 8 bits become bf16 when they are loaded; only what is published in 4 bits stays so.
    packed = bool(about) and not is_float8(about) and spec.moe is not None
    return Base(model, spec, family_of(config).names, packed)


def _config_of(model: str) -> tuple[dict[str, Any], str]:
    """The configuration in a folder, of a file, of a hub id or of a known name, and what to call it. BadRequest where
    there is none."""
    from loreloop.formats.configuration import local_config

    if found := local_config(model):
        return found
    # Imported only here, since the hub's client comes with it and takes long.
    from loreloop.formats.catalog import HUB_IDS
    from loreloop.formats.verdict import config_of

    return config_of(HUB_IDS.get(model, model))


def _near(model: str) -> list[str]:
    """What is spelled much like a model that is not there: known names, and what lies beside its path."""
    import difflib

    from loreloop.formats.catalog import HUB_IDS

    path = Path(model)
    if path.exists():
        return []
    beside = [str(path.parent / each.name) for each in path.parent.iterdir()] if path.parent.is_dir() else []
    return difflib.get_close_matches(model, [*HUB_IDS, *beside], 3, 0.75)


def _prices(file: Path | None) -> dict[str, float]:
    """A user's prices; WrongSettings for what is no price, or of no device."""
    import tomllib

    from loreloop.plan.devices import DEVICES
    from loreloop.protocol.errors import WrongSettings

    if file is None:
        return {}
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WrongSettings(f"--prices: {file} cannot be read: {error}.") from None
    for name, price in values.items():
        if name not in DEVICES or not isinstance(price, int | float) or price <= 0:
            raise WrongSettings(f"--prices: {name} = {price!r} is no price of a known device ({', '.join(DEVICES)}).")
    return values


def _show(report: Report, *, as_json: bool) -> None:
    import json

    from loreloop.cli.tables import show

    if as_json:
        click.echo(json.dumps(vars(report), indent=2))
        return
    if report.best:
        show(report.best, False)
        click.echo("\nGigabytes of the fullest rank, by part:")
    else:
        click.echo("Nothing fits. The nearest, in gigabytes of its fullest rank:")
    show(report.memory, False)
    for heading, lines in (("Why others lose:", report.losing), ("What would fit:", report.would)):
        if lines:
            click.echo("\n" + "\n".join((heading, *(f"  {line}" for line in lines))))
    click.echo(f"\n{report.beside}\nTimes are computed and not measured; from … to is their error band.")

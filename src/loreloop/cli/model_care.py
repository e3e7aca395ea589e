"""`loreloop models remove` and `verify`: taking a model away, and seeing whether it is still what was added."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from loreloop.cli.models import DATA

if TYPE_CHECKING:
    from pathlib import Path

    from loreloop.store.dependents import Dependents


@click.command("remove")
@click.argument("name")
@click.option("--force", is_flag=True, help="Even if checkpoints or deployments are left without it.")
@DATA
def remove_model(name: str, force: bool, data_dir: str) -> None:
    """Remove a model. Refused while a server serves it, and where checkpoints or deployments need it."""
    from pathlib import Path

    from loreloop.formats.catalog import Catalog
    from loreloop.protocol.errors import Conflict

    data = Path(data_dir).expanduser()
    catalog = Catalog(data)
    folder = catalog.place(name).absolute()  # also of a model whose files are damaged, which can be removed as others
    if url := serving(data, folder):
        raise Conflict(f"The server at {url} serves {name!r}; stop it first.")
    needed = dependents(data, name)
    if str(needed) and not force and folder.exists():
        raise Conflict(
            f"{needed} need {name!r}, and cannot be used until a model of that name is there again; "
            "give --force to remove it all the same."
        )
    click.echo(f"{catalog.remove(name)} is removed." + (f" Left without it: {needed}." if str(needed) else ""))


def serving(data: Path, folder: Path) -> str | None:
    """The address of the server that runs on the data folder and serves this model."""
    from loreloop.config import Config
    from loreloop.host.server_plan import ServerPlan, read_plan, running_address

    config = Config(data_dir=str(data))
    address, plan = running_address(config), ServerPlan(config, {}).file
    # A plan is left behind by a server that was killed, so the address decides whether one runs.
    if address is None or not plan.exists():
        return None
    return address.url if str(folder) in read_plan(str(plan)).folders.values() else None


def dependents(data: Path, name: str) -> Dependents:
    """The checkpoints and deployments that need this base model; none where there is no database yet."""
    from loreloop.cli.keys import transaction
    from loreloop.store.dependents import Dependents, of_base

    if not (data / "loreloop.db").exists():
        return Dependents(0, ())
    with transaction(str(data)) as connection:
        return of_base(connection, name)


@click.command("verify")
@click.argument("name", required=False)
@DATA
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify_models(name: str | None, data_dir: str, as_json: bool) -> None:
    """Compare the files of a model, or of all, with the checksums noted when it was added; exit code 1 where one
    differs."""
    import sys
    from pathlib import Path

    from loreloop.cli.tables import show
    from loreloop.formats.catalog import Catalog
    from loreloop.formats.checksums import findings

    catalog = Catalog(Path(data_dir).expanduser())
    entries = catalog.list() if name is None else [catalog.find(name)]
    rows = []
    for entry in entries:
        found = list(findings(entry.folder))
        rows += [{"model": entry.name, "file": one.file, "state": one.state} for one in found]
        if not found:
            # A folder that was put there by hand has no checksums.
            rows.append({"model": entry.name, "file": "", "state": "nothing was noted when it was added"})
    show(rows, as_json, empty="No models yet; `loreloop models add` adds one.")
    if any(row["state"] in ("changed", "missing") for row in rows):
        sys.exit(1)

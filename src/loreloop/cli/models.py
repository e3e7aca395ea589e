"""`loreloop models`: which base models there are, and adding one."""

from __future__ import annotations

from typing import Any

import click

DATA = click.option("--data", "data_dir", default="~/.local/share/loreloop", show_default=True, help="The data folder.")


@click.group()
def models() -> None:
    """List and add base models."""


@models.command("list")
@DATA
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_models(data_dir: str, as_json: bool) -> None:
    """Show the models of the data folder, and those that can be added by name."""
    from pathlib import Path

    from loreloop.cli.tables import show
    from loreloop.model.catalog import PACKAGE_MODELS, Catalog

    entries = Catalog(Path(data_dir).expanduser()).list()
    rows: list[dict[str, Any]] = [
        {
            "name": entry.name,
            "family": entry.spec.family,
            "layers": entry.spec.n_layers,
            "context_window": entry.spec.context_window,
            "size_mib": entry.n_bytes >> 20,
            "folder": str(entry.folder),
        }
        for entry in entries
    ]
    known = {entry.name for entry in entries}
    rows += [{"name": name, "folder": "not added yet"} for name in PACKAGE_MODELS if name not in known]
    show(rows, as_json)


@models.command("add")
@click.argument("source")
@click.option("--name", help="Another name for it.")
@DATA
def add_model(source: str, name: str | None, data_dir: str) -> None:
    """Add a model: a known name, a folder with config.json and safetensors, or a hub id (org/name)."""
    from pathlib import Path

    from loreloop.model.catalog import Catalog
    from loreloop.model.tokenizer_cache import write_tokenizer

    entry = Catalog(Path(data_dir).expanduser()).add(source, name)
    write_tokenizer(entry.folder, entry.name)
    click.echo(f"{entry.name} is in {entry.folder}; serve it with `loreloop serve --model {entry.name}`.")

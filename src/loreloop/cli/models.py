"""`loreloop models`: which base models there are, and adding one. Removing and verifying is in `model_care`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pathlib import Path

    from loreloop.protocol.training import ExpertForm

DATA_FOLDER = "~/.local/share/loreloop"
DATA = click.option("--data", "data_dir", default=DATA_FOLDER, show_default=True, help="The data folder.")


@click.group()
def models() -> None:
    """List, add, verify and remove base models."""


@models.command("list")
@DATA
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_models(data_dir: str, as_json: bool) -> None:
    """Show the models of the data folder, and those that can be added by name."""
    from pathlib import Path

    from loreloop.cli.tables import show
    from loreloop.formats.catalog import PACKAGE_MODELS, UPCYCLED_MODELS, Catalog

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
    rows += [
        {"name": name, "folder": "not added yet"} for name in (*PACKAGE_MODELS, *UPCYCLED_MODELS) if name not in known
    ]
    show(rows, as_json)


@models.command("add")
@click.argument("source")
@click.option("--name", help="What it is called here, in place of its own name.")
@click.option("--link", is_flag=True, help="Link the files of a folder, in place of copying them.")
@click.option(
    "--chat-template",
    "template",
    type=click.Path(exists=True, dir_okay=False),
    help="A Jinja file that becomes the model's chat template.",
)
@click.option(
    "--expert-noise",
    default=0.0,
    type=click.FloatRange(min=0),
    help="Of experts made here: noise on their weights; 0.05 is 5 %.",
)
@click.option(
    "--router-skew",
    default=1.0,
    type=click.FloatRange(min=1),
    help="Of experts made here: longest to shortest row of the router; 1: alike.",
)
@click.option(
    "--seed",
    default=0,
    type=click.IntRange(min=0, max=2**31 - 1),
    help="Of experts made here: seed of noise and router.",
)
@DATA
def add_model(source: str, name: str | None, *, link: bool, template: str | None, data_dir: str, **making: Any) -> None:
    """Add a model: a known name, a folder with config.json and safetensors, a .gguf file, or a hub id (org/name).

    What a server could not load is refused, and leaves nothing behind.

    smollm2-moe-4x135m is made of smollm2-135m: every feed-forward becomes four experts of which a token uses two.
    """
    from pathlib import Path

    from loreloop.formats.adding import add
    from loreloop.formats.catalog import Catalog
    from loreloop.formats.upcycle import Upcycling

    recipe = Upcycling(noise=making["expert_noise"], skew=making["router_skew"], seed=making["seed"])
    catalog = Catalog(Path(data_dir).expanduser(), accept_text)
    # The options mean something only where experts are made here; given elsewhere, the catalogue refuses them.
    made = recipe if recipe != Upcycling() else None
    entry = add(catalog, source, name, made, link=link, template=Path(template) if template else None)
    click.echo(f"{entry.name} is in {entry.folder}; serve it with `loreloop serve --model {entry.name}`.")


def accept_text(folder: Path) -> None:
    """BadRequest where tokenizer, templates or sampling defaults could not be served."""
    from loreloop.deployments.model_texts import ModelTexts

    ModelTexts().of(folder)


@models.command("count")
@click.argument("model")
@click.option("--rank", default=1, show_default=True, type=click.IntRange(min=1), help="The adapter's rank.")
@click.option(
    "--experts",
    default="shared_outer",
    show_default=True,
    type=click.Choice(["shared_outer", "per_expert"]),
    help="What each routed expert has of its own: one of its two matrices, or both.",
)
@DATA
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def count_model(model: str, rank: int, experts: ExpertForm, data_dir: str, as_json: bool) -> None:
    """Count an adapter's parameters. MODEL is a model of the data folder, a model folder, or a config.json alone."""
    from pathlib import Path

    from loreloop.cli.tables import show
    from loreloop.formats.configuration import read_config_file, spec_of
    from loreloop.model.count import count_adapter

    # A configuration alone is enough to count, so a model need not be downloaded first.
    file = Path(model) / "config.json" if Path(model).is_dir() else Path(model)
    if not file.is_file():
        from loreloop.formats.catalog import Catalog

        file = Catalog(Path(data_dir).expanduser()).find(model).folder / "config.json"
    spec = spec_of(read_config_file(file), str(file))
    count = count_adapter(spec, rank, experts)
    row = {"model": model, "family": spec.family, "rank": rank, "experts": experts if spec.moe else ""}
    show([row | {"mlp": count.mlp, "attn": count.attn, "unembed": count.unembed, "total": count.total}], as_json)

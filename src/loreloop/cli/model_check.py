"""`loreloop models check`: whether a model would be served, before anything of it is downloaded or loaded."""

from __future__ import annotations

import click


@click.command("check")
@click.argument("source")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check_model(source: str, *, as_json: bool) -> None:
    """Say whether a model is served, what is missing, and how much memory it takes; exit code 1 where it is not served.

    SOURCE is a model folder, a config.json alone, or a hub id (org/name), of which only the configuration is fetched.
    """
    import sys

    from loreloop.cli.tables import show
    from loreloop.formats.verdict import TOKENS, check, memory_here

    verdict, here = check(source), memory_here()
    row: dict[str, object] = {"model": source, "type": verdict.model_type, "served": "yes" if verdict.served else "no"}
    if verdict.served:
        # The default layout of a CPU keeps weights twice, so the smaller figure is the one that must fit at least.
        fits = [name for name, size in (("bf16", verdict.n_bf16), ("int4", verdict.n_packed)) if size < here]
        row |= {
            "bf16_mib": verdict.n_bf16 >> 20,
            "int4_mib": verdict.n_packed >> 20,
            f"cache_mib_per_{TOKENS}_tokens": round(verdict.n_cache / (1 << 20), 1),
            "memory_here_mib": here >> 20,
            "fits_here": " and ".join(fits) or "no",
        }
    else:
        row |= {"nearest": verdict.nearest, "missing": ", ".join(verdict.missing)}
    show([row], as_json)
    if not verdict.served:
        click.echo(verdict.reason, err=True)
        sys.exit(1)

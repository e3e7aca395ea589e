"""`loreloop demo`: a server of its own, and the demo run against it."""

from __future__ import annotations

import click


@click.command()
@click.option("--out", default="demo-out", show_default=True, help="Where the table, the numbers and the picture go.")
@click.option("--data", "data_dir", help="Where the model is kept.  [default: ~/.local/share/loreloop]")
def demo(out: str, data_dir: str | None) -> None:
    """Watch a real model learn sums, through the SDK and the openai client."""
    import tempfile
    from pathlib import Path

    from rich.console import Console
    from transformers import AutoTokenizer

    from loreloop.cli.server import running_server
    from loreloop.config import Config
    from loreloop.demo.run import Demo
    from loreloop.model.catalog import Catalog

    console = Console()
    catalog = Catalog(Path(data_dir or Config().data_dir).expanduser())
    with console.status("the model smollm2-135m"):
        folder = catalog.ensure("smollm2-135m").folder
        tokenizer = AutoTokenizer.from_pretrained(folder)  # of the same disk; other clients take it from /hf
    # The demo's runs and keys are nobody's business afterwards, so its server keeps them in a folder that goes away.
    with tempfile.TemporaryDirectory(prefix="loreloop-demo-") as scratch:
        Path(scratch, "models").symlink_to(catalog.folder)
        with running_server(scratch, ["--model", "smollm2-135m"]) as server:
            Demo(server.url, server.key, "smollm2-135m", tokenizer, console).run(Path(out))

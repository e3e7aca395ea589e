"""`loreloop demo`: a server of its own, and the demo run against it."""

from __future__ import annotations

import click


@click.command()
@click.option("--out", default="demo-out", show_default=True, help="Where the table, the numbers and the picture go.")
@click.option(
    "--data", "data_dir", help="The data folder, where the model is kept.  [default: ~/.local/share/loreloop]"
)
def demo(out: str, data_dir: str | None) -> None:
    """Watch a real model learn sums, through the SDK and the openai client."""
    import tempfile
    import warnings
    from pathlib import Path

    from rich.console import Console
    from transformers import AutoTokenizer

    from loreloop.cli.server import running_server
    from loreloop.config import Config
    from loreloop.demo.run import Demo
    from loreloop.formats.adding import ensure
    from loreloop.formats.catalog import Catalog

    console = Console()
    catalog = Catalog(Path(data_dir or Config().data_dir).expanduser())
    folder = ensure(catalog, "smollm2-135m").folder
    tokenizer = AutoTokenizer.from_pretrained(folder)  # of the same disk; other clients take it from /hf
    console.print("A real model learns sums: about ten minutes on two free cores, longer where others compute too.")
    # The demo's runs and keys are nobody's business afterwards, so its server keeps them in a folder that goes away.
    with tempfile.TemporaryDirectory(prefix="loreloop-demo-") as scratch:
        # The model is linked into the scratch folder, since it is large and may be there already.
        Path(scratch, "models").symlink_to(catalog.folder)
        with running_server(scratch, ["--model", "smollm2-135m"]) as server, warnings.catch_warnings():
            # What the SDK's next version will change is its users' business, not that of somebody who watches bars.
            warnings.simplefilter("ignore", FutureWarning)
            Demo(server.url, server.key, "smollm2-135m", tokenizer, console).run(Path(out))

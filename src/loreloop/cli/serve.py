"""`loreloop serve`: find the models, then supervise until told to stop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from loreloop.config import Config
    from loreloop.formats.catalog import Catalog, CatalogEntry
    from loreloop.host.server_plan import ServerPlan


# Large tensors go back to the system when they are freed, and come from it in huge pages; the heap keeps what one step
# frees for the next. Page faults were a quarter of a decoding step otherwise.
MEMORY = {
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": str(8 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
    "THP_MEM_ALLOC_ENABLE": "1",
}


ENGINE_FLAGS = (
    "mesh",
    "ray",
    "replicas",
    "samplers",
    "precision",
    "quantize",
    "deterministic",
    "threads",
    "decode_gap_ms",
    "verify_weights",
)


@click.command()
@click.option(
    "--model",
    "models",
    multiple=True,
    help="A model to serve: a name of `loreloop models list`, or a folder. Repeatable.",
)
@click.option(
    "--alias", "aliases", multiple=True, metavar="NAME=MODEL", help="Serve MODEL under a second name. Repeatable."
)
@click.option("--data", "data_dir", metavar="DIR", help="The data folder.  [default: ~/.local/share/loreloop]")
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=int, help="Port to listen on; 0 takes a free one.  [default: 8000]")
@click.option("--mesh", help="Processes that share each layer of a model, such as tp=2.  [default: one process]")
@click.option(
    "--ray",
    is_flag=False,
    flag_value="auto",
    metavar="[HOST:PORT]",
    help="Spread the processes of --mesh over the hosts of a Ray cluster: the one at this address, or this host's.",
)
@click.option(
    "--sampler", "samplers", multiple=True, metavar="URL", help="A vLLM or SGLang server of the model. Repeatable."
)
@click.option("--replicas", type=int, help="Further engines of each model, which only sample.  [default: 0]")
@click.option(
    "--precision",
    type=click.Choice(["auto", "bf16", "fp32"]),
    help="Numbers of the frozen weights and their products; auto: bf16 where that is fast.  [default: auto]",
)
@click.option(
    "--quantize",
    type=click.Choice(["none", "int4"]),
    help="Keep frozen weights packed in 4 bits; a model from a GGUF file keeps its own blocks.  [default: none]",
)
@click.option(
    "--deterministic",
    is_flag=True,
    default=None,
    help="Results do not depend on what else is computed at the same time (slower).",
)
@click.option("--threads", type=int, help="Threads of each engine; 0 means one for each core.  [default: 0]")
@click.option(
    "--decode-gap-ms",
    type=int,
    help="Training pauses this often for the next tokens of running samples; 0: only between batches.  [default: 200]",
)
@click.option(
    "--generation-config/--no-generation-config",
    default=None,
    help="Whether chats take temperature, top_p and the like from the model's generation_config.json where a request "
    "leaves them out.  [default: they do]",
)
@click.option(
    "--verify-weights",
    is_flag=True,
    default=None,
    help="Before weights are loaded, compare them with the checksums that `models add` noted.",
)
@click.option(
    "--memory-mib", type=int, help="What the base models may take together, in MiB; 0: no bound.  [default: 0]"
)
@click.option(
    "--durability",
    type=click.Choice(["power", "os"]),
    help="What survives with all that was acknowledged: a power cut, or the death of processes alone.  "
    "[default: power]",
)
@click.option("--log-file", metavar="FILE", help="Where the log goes.  [default: loreloop.log in the data folder]")
@click.option("--verbose", is_flag=True, default=None, help="Show the whole log in the terminal too.")
@click.option(
    "--config",
    "config_file",
    type=click.Path(exists=True, dir_okay=False),
    help="A TOML file with settings; a flag overrides it.",
)
@click.option("--parent-pid", type=int, hidden=True, help="End when this process does; for servers that others start.")
def serve(config_file: str | None, parent_pid: int | None, **flags: Any) -> None:
    """Serve models to clients of Tinker, OpenAI and Anthropic."""
    from loreloop.config import load_config
    from loreloop.host.address import check_address
    from loreloop.host.orphans import die_with_parent
    from loreloop.host.place import prepare
    from loreloop.host.supervisor import Supervisor, lock_data
    from loreloop.store.inspection import inspect_data

    if parent_pid is not None:
        die_with_parent(parent_pid)
    # The command line goes over the file, and the file over the defaults.
    config = load_config(config_file, overrides(flags)).absolute()
    prepare(config.data_path)
    with lock_data(config.data_path / "run"):  # what another server is writing would look like damage
        # A port that is taken is told at once, not after a model was loaded for minutes.
        check_address(config.host, config.port)
        notes = inspect_data(config.data_path)
        Supervisor(plan_of(config), engine_environment(config), notes).run()


def overrides(flags: dict[str, Any]) -> dict[str, Any]:
    """What was given on the command line, shaped like the configuration."""
    from loreloop.protocol.errors import WrongSettings

    # None and () are what click gives for an option that was left out.
    given = {name: value for name, value in flags.items() if value not in (None, ())}
    pairs = [alias.partition("=") for alias in given.pop("aliases", ())]
    # An alias without a model would otherwise be looked for under an empty name.
    if any(not model for _, _, model in pairs):
        raise WrongSettings("An --alias is written NAME=MODEL.")
    engine = {name: given.pop(name) for name in ENGINE_FLAGS if name in given}
    if pairs:
        given["aliases"] = {name: model for name, _, model in pairs}
    return given | ({"engine": engine} if engine else {})


def plan_of(config: Config) -> ServerPlan:
    """Finds the models, and sees that they fit the memory budget."""
    import secrets
    from importlib.util import find_spec

    from loreloop.cli.memory_budget import fitted
    from loreloop.cli.outside_base import check_samplers
    from loreloop.cli.ranks import check_fits
    from loreloop.deployments.model_texts import ModelTexts
    from loreloop.formats.catalog import HUB_IDS, Catalog
    from loreloop.host.server_plan import ServerPlan
    from loreloop.protocol.errors import BadRequest

    catalog = Catalog(config.data_path)
    # With int4 the model's own quantized blocks are kept, which saves rounding them a second time.
    blocks = config.engine.quantize == "int4"
    entries = {entry.name: entry for entry in (_served(catalog, name, blocks=blocks) for name in config.models)}
    for entry in entries.values():
        ModelTexts().of(entry.folder)  # a tokenizer or template that cannot be read is refused now, by its file
    check_fits(config.engine, (entry.folder for entry in entries.values()))
    n_mib = sum(entry.n_bytes for entry in entries.values()) >> 20
    config = fitted(config, n_mib)
    check_samplers(config.engine, list(entries.values()))
    for alias, model in config.aliases.items():
        if model not in entries:
            raise BadRequest(f"The alias {alias!r} is for {model!r}, which is not served; add --model {model}.")
    folders = {name: str(entry.folder) for name, entry in entries.items()}
    hub_ids = {name: hub_id for name, hub_id in HUB_IDS.items() if name in entries}
    # Jobs train through the SDK, as clients do; without it they are refused when somebody asks for one.
    has_worker = bool(config.limits.running_jobs) and find_spec("tinker") is not None
    return ServerPlan(
        config=config, folders=folders, nonce=secrets.token_hex(16), hub_ids=hub_ids, has_worker=has_worker
    )


def _served(catalog: Catalog, name: str, *, blocks: bool) -> CatalogEntry:
    """A model, which is added on the way where a package ships it."""
    if not catalog.lacks(name, blocks=blocks):
        return catalog.find(name)
    # Here alone a library of tensors is loaded, which takes a second and 200 MB that a server keeps to its end.
    from loreloop.formats.adding import ensure

    return ensure(catalog, name, blocks=blocks)


def engine_environment(config: Config) -> dict[str, str]:
    """Threads, and an allocator that gives back what a heap of activations of changing sizes would keep."""
    import os

    from loreloop.engine import processor

    # The affinity is what the process may really use, for instance in a container.
    n_threads = config.engine.threads or len(os.sched_getaffinity(0))
    return {"OMP_NUM_THREADS": str(n_threads)} | processor.environment() | MEMORY

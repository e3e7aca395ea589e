"""Whether an engine agrees with itself on a model: in pieces, beside others, sampled and trained."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from loreloop.config import Config, EngineConfig
    from loreloop.engine.agreement import Difference
    from loreloop.engine.local import LocalEngine
    from loreloop.engine.tolerances import Tolerance
    from loreloop.host.findings import Finding

MEANING = {
    "split": "a text scored behind its cached beginning, against the same in one piece",
    "co-batch of samples": "samples drawn alone, against the same beside others",
    "co-batch of training": "texts scored by training alone, against the same in one pass",
    "mismatch": "what sampling said of its tokens, against what training computes",
}


def model_findings(config: Config, name: str) -> Iterator[Finding]:
    """Loads the model with the server's settings, in one process, and gives each check's figures in nats. NotFound
    where there is no such model."""
    import tempfile
    from pathlib import Path

    from loreloop.cli.doctor_machine import free_bytes, needed_bytes
    from loreloop.engine.agreement import differences
    from loreloop.engine.precision import chosen_device
    from loreloop.engine.tolerances import documented
    from loreloop.formats.catalog import Catalog
    from loreloop.host.findings import Finding
    from loreloop.protocol.errors import LoreloopError

    entry = Catalog(config.data_path).find(config.aliases.get(name, name))
    needed, free = needed_bytes(config, entry.folder), free_bytes()
    # A machine that runs out of memory would end some process, perhaps the server's.
    if free and needed > free and config.engine.device != "cuda":
        found = f"{entry.name} takes {needed >> 20:,} MiB, and {free >> 20:,} are free: it was not loaded"
        yield Finding("model", "wrong", found, "stop the server meanwhile, or check it with --quantize int4")
        return
    with tempfile.TemporaryDirectory(prefix="loreloop-doctor-") as scratch:
        try:
            engine = _engine(_in_one_process(config.engine), entry.name, entry.folder, Path(scratch))
            device = chosen_device(config.engine.device)
            tolerance = documented(config.engine, engine.info.precision, device)
            found = f"{entry.name} computes in {engine.info.precision}; documented: {tolerance.in_words()}"
            yield Finding("model", "ok", found)
            for difference in differences(engine):
                yield _judged(difference, tolerance)
        except LoreloopError as error:
            yield Finding("model", "wrong", error.message, "`loreloop models verify` looks at its files")


def _in_one_process(config: EngineConfig) -> EngineConfig:
    """The server's settings, but for what belongs to several processes. The number of threads is held, since another
    one adds up in another order; where it is left open, it is that of the cores that are idle now."""
    import msgspec

    # Threads that have no core wait for one another, on a busy machine for minutes.
    n_idle = max(1, len(os.sched_getaffinity(0)) - int(os.getloadavg()[0]))
    n_threads = config.threads or n_idle
    return msgspec.structs.replace(config, mesh="", ray="", replicas=0, samplers=(), threads=n_threads)


def _engine(config: EngineConfig, name: str, folder: Path, scratch: Path) -> LocalEngine:
    from loreloop.engine.local import LocalEngine
    from loreloop.protocol.syncing import promise

    promise("os")  # all that is written here goes away at the end
    return LocalEngine(config, name, folder, scratch)


def _judged(found: Difference, tolerance: Tolerance) -> Finding:
    from loreloop.host.findings import Finding

    figures: dict[str, float | None] = {
        "tokens": found.n_tokens,
        "largest_nats": _number(found.largest),
        "mean_nats": _number(found.mean),
    }
    sizes = f"largest {found.largest:.2g}, mean {found.mean:.2g} nats over {found.n_tokens} tokens"
    said = f"{sizes} ({MEANING[found.name]})"
    if not tolerance.holds(found):
        advice = f"more than is documented ({tolerance.in_words()}): please report it, with the lines above"
        return Finding(found.name, "wrong", said, advice, figures)
    if tolerance.is_equal and found.largest > 0:
        advice = "rounding: some parts of models differ (docs/hardware.md); --deterministic makes them equal"
        return Finding(found.name, "warning", said, advice, figures)
    return Finding(found.name, "ok", said, "", figures)


def _number(value: float) -> float | None:
    """JSON has no form for what is no number."""
    return value if math.isfinite(value) else None

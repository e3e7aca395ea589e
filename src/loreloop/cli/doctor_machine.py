"""What a set-up computes with, what its models take, and what stands around code from outside."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loreloop.config import Config
    from loreloop.formats.catalog import CatalogEntry
    from loreloop.host.findings import Finding

SETTLE = "set LORELOOP_ISA to one of those, or leave it unset"


def machine(config: Config) -> Iterator[Finding]:
    """Processor and kernels, memory against the models, walls for code from outside."""
    yield from _processor(config)
    yield from _memory(config)
    yield _walls(config)


def _processor(config: Config) -> Iterator[Finding]:
    from loreloop.engine import processor
    from loreloop.host.findings import Finding
    from loreloop.protocol.errors import WrongSettings

    try:
        # Before the tensor library is loaded, which reads these once.
        os.environ.update(processor.environment())
    except WrongSettings as error:
        yield Finding("processor", "wrong", error.message, SETTLE)
        return
    import torch

    from loreloop.engine.precision import chosen_device, chosen_precision

    device, n_cores = chosen_device(config.engine.device), len(os.sched_getaffinity(0))
    if device.type == "cuda" and not torch.cuda.is_available():
        found = "engine.device is cuda, and torch sees no GPU"
        yield Finding("processor", "wrong", found, "install torch for CUDA and a driver, or set engine.device to cpu")
        return
    precision = chosen_precision(config.engine.precision, device)
    name = torch.cuda.get_device_name(0) if device.type == "cuda" else processor.instructions()
    yield Finding("processor", "ok", f"{name}, {n_cores} cores; products in {precision}")
    if device.type == "cuda":
        return
    compiler = processor.compiler()
    if compiler is None:
        found = "no C compiler was found, or LORELOOP_KERNELS is 0: everything works, more slowly"
        yield Finding("kernels", "warning", found, "install gcc, or unset LORELOOP_KERNELS")
        return
    yield Finding("kernels", "ok", f"built by {compiler} for {processor.instructions()}")


def needed_bytes(config: Config, folder: Path) -> int:
    """What the weights of a model take in this server's settings: in four bits, in bf16, or in fp32. 0 where its
    configuration does not tell."""
    from loreloop.formats.verdict import check
    from loreloop.protocol.errors import LoreloopError

    try:
        verdict = check(str(folder))
    except LoreloopError:
        return 0
    if config.engine.quantize == "int4":
        return verdict.n_packed
    return verdict.n_bf16 * (2 if config.engine.precision == "fp32" else 1)


def free_bytes() -> int:
    """The memory that a new process could have without pushing others out; 0 where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    found = next((line for line in lines if line.startswith("MemAvailable:")), "")
    return int(found.split()[1]) * 1024 if found else 0


def _memory(config: Config) -> Iterator[Finding]:
    from loreloop.formats.catalog import PACKAGE_MODELS, UPCYCLED_MODELS, Catalog
    from loreloop.formats.verdict import memory_here
    from loreloop.host.findings import Finding
    from loreloop.protocol.errors import LoreloopError

    entries: list[CatalogEntry] = []
    for name in config.models:
        try:
            entries.append(Catalog(config.data_path).find(name))
        except LoreloopError as error:
            if name in (*PACKAGE_MODELS, *UPCYCLED_MODELS):
                yield Finding("model", "ok", f"{name} is not there yet; the first start fetches it")
            else:
                yield Finding("model", "wrong", error.message, "`loreloop models add`, or another --model")
    if not entries:
        return
    n_engines, whole = 1 + config.engine.replicas, memory_here()
    needed = n_engines * sum(needed_bytes(config, entry.folder) for entry in entries)
    bound = config.memory_mib << 20 or whole
    names = ", ".join(entry.name for entry in entries)
    found = f"{names} {'takes' if len(entries) == 1 else 'take'} {needed >> 20:,} MiB of {bound >> 20:,}"
    if needed > bound:
        advice = "serve fewer models or replicas, or keep weights in four bits with --quantize int4"
        yield Finding("memory", "wrong", found, advice)
    elif 2 * needed > bound:
        # Caches, activations and the second, packed copy come on top.
        advice = "set engine.pack_weights to false, or --quantize int4"
        yield Finding("memory", "warning", f"{found}: little is left", advice)
    else:
        yield Finding("memory", "ok", f"{found}; {free_bytes() >> 20:,} MiB are free now")


def _walls(config: Config) -> Finding:
    """What holds around code of graders, found out by trying."""
    import asyncio
    import logging

    from loreloop.host.findings import Finding
    from loreloop.learn.rewards.sandbox import STRONG, CodeSandbox, Strength

    if config.code_sandbox == "off":
        return Finding("sandbox", "ok", "graders run no code here: code_sandbox is off")

    async def tried() -> Strength:
        sandbox = CodeSandbox(config.code_sandbox, workers=1)
        try:
            return await sandbox.strength()
        finally:
            await sandbox.close()

    log = logging.getLogger("loreloop.learn.rewards.sandbox")
    before, log.disabled = log.disabled, True  # the finding says the same
    try:
        strength = asyncio.run(tried())
    finally:
        log.disabled = before
    if strength.way in STRONG and not strength.lacks:
        return Finding("sandbox", "ok", strength.in_words())
    advice = "install bubblewrap, or a kernel with Landlock or user namespaces (docs/graders.md)"
    return Finding("sandbox", "warning", strength.in_words(), advice)

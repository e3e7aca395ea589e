"""Whether the weights of all engines fit into memory, before any of them is started."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loreloop.config import Config


def fitted(config: Config, n_mib: int, machine_mib: int | None = None) -> Config:
    """The settings, without packed weights where the budget has no room for them. `n_mib` are the weights of all models
    once; every replica holds them once more. BadRequest with the numbers where they do not fit, into `memory_mib`, or
    with replicas and without that setting into the machine (`machine_mib`; None: this one), if all lie on it."""
    import msgspec

    from loreloop.protocol.errors import BadRequest

    n_replicas, budget_mib = config.engine.replicas, config.memory_mib
    all_mib = (1 + n_replicas) * n_mib
    if not n_replicas and budget_mib and n_mib > budget_mib:
        raise BadRequest(f"The models need {n_mib} MiB together; memory_mib allows {budget_mib}. Serve fewer.")
    bound, room_mib = "memory_mib allows", budget_mib
    if not budget_mib:
        bound, room_mib = "this machine has", machine_mib or _machine_mib()
    # With --ray engines lie on several hosts, whose memory nobody has told.
    is_over = n_replicas and all_mib > room_mib
    if is_over and (budget_mib or not (config.engine.ray or _on_gpu(config))):
        raise BadRequest(
            f"The models need {n_mib} MiB in each of {1 + n_replicas} engines, {all_mib} MiB together; {bound} "
            f"{room_mib}. Serve fewer models, or at most --replicas {max(0, room_mib // n_mib - 1)}."
        )
    if budget_mib and 2 * all_mib > budget_mib:  # no room for the weights' second, packed copy
        return msgspec.structs.replace(config, engine=msgspec.structs.replace(config.engine, pack_weights=False))
    return config


def _on_gpu(config: Config) -> bool:
    """Whether weights lie in other memory than the machine's own."""
    import torch  # takes seconds, so only where it matters

    return config.engine.device == "cuda" or (config.engine.device == "auto" and torch.cuda.is_available())


def _machine_mib() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20

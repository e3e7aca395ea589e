"""Whether a sampler outside serves the base model that is served here, as far as it tells."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loreloop.config import EngineConfig
    from loreloop.formats.catalog import CatalogEntry
    from loreloop.model.spec import DecoderSpec
    from loreloop.outside.server import SamplerServer


def check_samplers(config: EngineConfig, entries: Sequence[CatalogEntry]) -> None:
    """BadRequest where samplers outside cannot draw for these models, WrongSettings where they cannot under these
    settings, Unavailable where one does not answer: told at once, and not by a process that cannot start."""
    from loreloop.formats.catalog import HUB_IDS
    from loreloop.outside.server import SamplerServer
    from loreloop.protocol.errors import BadRequest, WrongSettings

    if not config.samplers:
        return
    if config.deterministic:
        raise WrongSettings(
            "--deterministic promises the same draws again, and a sampler outside (--sampler) draws by its own rules. "
            "Leave one of the two out."
        )
    if len(entries) > 1:
        n = len(entries)
        raise BadRequest(f"engine.samplers (--sampler) draw for one model; {n} are served here. Serve one.")
    (entry,) = entries
    for url in config.samplers:
        check_base(SamplerServer(url), entry.folder, entry.spec, HUB_IDS.get(entry.name, ""))


def check_base(server: SamplerServer, folder: Path, spec: DecoderSpec, hub_id: str) -> None:
    """BadRequest where the sampler was started with another checkpoint than the one in `folder`,
    known as `hub_id` ("": not known). Unavailable where it does not answer."""
    from loreloop.formats.fingerprint import fingerprint
    from loreloop.protocol.errors import BadRequest

    base = server.base_model()
    root = base.root or ""
    if (Path(root) / "config.json").is_file():
        if fingerprint(Path(root)) != fingerprint(folder):
            raise BadRequest(
                f"The sampler at {server.url} draws from the model in {root}, which is another one than that in "
                f"{folder}. Start it with the one that is served here."
            )
        return
    # Of a name at a hub the owner says little, since copies of a model lie there under many.
    name, ours = root.rstrip("/").rpartition("/")[2], hub_id.rpartition("/")[2]
    if root.count("/") == 1 and ours and name.lower() != ours.lower():
        raise BadRequest(
            f"The sampler at {server.url} draws from {root}, and the model here is {hub_id}. Start it with the one "
            "that is served here."
        )
    # A sampler may be started with a smaller window than its model has, and not with a larger one. Where positions are
    # stretched, it may count the window that they are stretched to.
    window = spec.context_window
    if base.window and base.window > window and spec.rope.scaling == "none":
        raise BadRequest(
            f"The sampler at {server.url} has a window of {base.window} tokens, and the model here one of {window}. "
            "Start it with the model that is served here."
        )

"""What a model name means: a served base, an alias of one, or a checkpoint of the asking key.

Unknown names are refused with those that come near.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from loreloop.protocol.errors import BadRequest, NotFound
from loreloop.protocol.paths import SCHEME, CheckpointKind, parse_path
from loreloop.protocol.sampling import Revision
from loreloop.store import checkpoints, runs
from loreloop.store.rows import CheckpointRow
from loreloop.store.store import Store


@dataclass(frozen=True)
class Target:
    """`name` is what the base was called by whoever trained or asked; `base_model` is the served one."""

    name: str
    base_model: str
    revision: Revision | None = None


class Names:
    """Served bases by name with their folders, and aliases."""

    def __init__(self, folders: dict[str, Path], aliases: dict[str, str]) -> None:
        self.folders, self.aliases = folders, aliases

    def all(self) -> list[str]:
        return [*self.folders, *self.aliases]

    def base(self, name: str) -> str:
        """The served base of a name or alias; a suffix after ':' (a variant of the context length) is let pass."""
        for candidate in (name, name.split(":")[0]):
            if candidate in self.folders:
                return candidate
            if candidate in self.aliases:
                return self.aliases[candidate]
        near = difflib.get_close_matches(name, self.all(), n=3, cutoff=0.3)
        raise NotFound(
            f"The model {name!r} is not served here. Served: {', '.join(self.all())}."
            + (f" Did you mean {near[0]!r}?" if near else "")
        )

    def folder(self, name: str) -> Path:
        return self.folders[self.base(name)]

    def target(self, store: Store, key_id: str, model: str) -> Target:
        """What to sample from for `model`: a base, an alias, `tinker://…`, or `base;tinker://…`."""
        asked, _, path = model.rpartition(";")
        if not path.startswith(SCHEME):
            return Target(model, self.base(model))
        checkpoint = self.sampler_checkpoint(store, key_id, path)
        trained_on = store.read(runs.get, key_id, checkpoint.run_id).base_model
        if asked and self.base(asked) != self.base(trained_on):
            raise BadRequest(f"{path} was trained on {trained_on!r}, not on {asked!r}.")
        return Target(trained_on, self.base(trained_on), Revision(path, checkpoint.folder))

    def sampler_checkpoint(self, store: Store, key_id: str, path: str) -> CheckpointRow:
        parsed = parse_path(path)
        if parsed.kind is not CheckpointKind.SAMPLER:
            raise BadRequest(
                f"{path} cannot be sampled from; save the weights with save_weights_for_sampler and use that path."
            )
        return store.read(checkpoints.get, key_id, parsed)

"""Adapters that sampling uses: immutable, known by id, loaded from their folders when first asked for.

The most recently used stay in memory. Knows nothing of where an id comes from.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch

from loreloop.model.lora import AdapterView
from loreloop.model.peft import read_adapter
from loreloop.model.spec import DecoderSpec
from loreloop.protocol.sampling import Revision


class Revisions:
    """At most `max_resident` adapters in the compute dtype; one in use outlives its eviction by itself."""

    def __init__(self, spec: DecoderSpec, dtype: torch.dtype, device: torch.device, max_resident: int) -> None:
        self.spec, self.dtype, self.device, self.max_resident = spec, dtype, device, max_resident
        self.resident: OrderedDict[str, AdapterView] = OrderedDict()

    def get(self, revision: Revision) -> AdapterView:
        """The adapter of a revision; raises BadRequest where its folder cannot be read."""
        view = self.resident.get(revision.revision_id)
        if view is None:
            view = read_adapter(Path(revision.folder), self.spec, self.dtype)
            self.put(revision.revision_id, AdapterView(view.layout, view.flat.to(self.device)))
        self.resident.move_to_end(revision.revision_id)
        return self.resident[revision.revision_id]

    def put(self, revision_id: str, view: AdapterView) -> None:
        self.resident[revision_id] = view
        self.resident.move_to_end(revision_id)
        while len(self.resident) > self.max_resident:
            self.resident.popitem(last=False)

    def drop(self, revision_id: str) -> None:
        self.resident.pop(revision_id, None)

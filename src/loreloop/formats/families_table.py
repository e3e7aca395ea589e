"""What is served of which family, as one table for a page; made from the code, so that it cannot be out of date."""

from __future__ import annotations

from collections.abc import Iterator

from loreloop.formats.gguf import ARCHITECTURES
from loreloop.formats.gguf_out import WRITTEN
from loreloop.model.families.family import RoutingFamily, SeeingFamily
from loreloop.model.families.table import FAMILIES

HEAD = ("model type", "train", "sample", "adapters on experts", "4 bits", "vision", "export", "GGUF")
YES, NO = "yes", "–"


def rows() -> Iterator[tuple[str, ...]]:
    """One row for each model type, with the columns of `HEAD`."""
    for name, family in sorted(FAMILIES.items()):
        experts = "both forms" if isinstance(family, RoutingFamily) else NO
        vision = YES if isinstance(family, SeeingFamily) else NO
        ways = [way for way, names in (("read", ARCHITECTURES), ("written", WRITTEN)) if name in names]
        # Training, sampling, packing and export go by sites and names of weights, and so are the same for all.
        yield (f"`{name}`", YES, YES, experts, YES, vision, "peft, merged", ", ".join(ways) or NO)


def markdown() -> str:
    """The table as it stands in `docs/models.md`."""
    lines = [HEAD, tuple("---" for _ in HEAD), *rows()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"

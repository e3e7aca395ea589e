"""The expert plan: which routed experts of a decoder, and of its adapters, a rank holds.

Each rank has an equal run of every routed layer's experts, and whatever adapts them; all else is copied. What experts
have in common (the outer matrices of the shared-outer form) is copied too, and gets from each rank the part of its
gradient that that rank's experts give. The shared expert is computed by rows (`exchange.py`), so its adapter's gradient
comes in parts as well.

Legend: E experts, O outputs, I inputs, R rank of an adapter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from loreloop.model.lora import AdapterView, LoraLayout
from loreloop.model.lora_region import WHOLE, Factor, Matrix, Region
from loreloop.model.spec import DecoderSpec, MoeSpec
from loreloop.parallel.cut import Held, Shared, Weight
from loreloop.parallel.mesh import Axis
from loreloop.protocol.training import ExpertForm

SHARED = "shared."  # sites of the shared expert begin with it
# The factor at each site of experts that stands on the side of the model's width.
OUTER: dict[str, Factor] = {"experts.gate_up": "a", "experts.down": "b"}


@dataclass(frozen=True)
class ExpertCut:
    """The share of `rank` among `size` ranks, of the decoder `spec`. See `cut.Cut`."""

    spec: DecoderSpec
    rank: int
    size: int

    @property
    def axis(self) -> Axis:
        """Routed experts."""
        return "ep"

    @property
    def _moe(self) -> MoeSpec:
        # `check_mesh` refuses models without routed experts.
        assert self.spec.moe is not None
        return self.spec.moe

    @property
    def experts(self) -> range:
        """Those that the rank holds."""
        n = self._moe.n_experts // self.size
        return range(self.rank * n, (self.rank + 1) * n)

    @property
    def local(self) -> DecoderSpec:
        """The same decoder, whose router goes on choosing among all experts, with some of them."""
        experts = self.experts
        return replace(self.spec, moe=replace(self._moe, held=(experts.start, experts.stop)))

    def weight(self, role: str, weight: Weight) -> Weight | None:
        """See `cut.Cut`. Packed weights go with their expert like others."""
        _, _, site = role.partition(".")
        expert, _, _ = site.partition(".")
        return None if expert.isdecimal() and int(expert) not in self.experts else weight

    def region(self, matrix: Matrix, whole: LoraLayout) -> Region:
        """An expert's own matrices go with it, all others are whole."""
        mine = self.experts
        return (
            Region(experts=slice(mine.start, mine.stop))
            if _of_each(matrix.site, matrix.factor, whole.lora.experts)
            else WHOLE
        )

    def held(self, site: str, factor: Factor, form: ExpertForm) -> Held:
        """An expert's own matrices go with it. Of the outer ones, and of the shared expert's, each rank gathers a part
        of the gradient; of all others, the whole."""
        if _of_each(site, factor, form):
            return "cut"
        return "partial" if site in OUTER or site.startswith(SHARED) else "copied"

    def shared(self, mine: AdapterView) -> Iterator[Shared]:
        """Each rank has other experts."""
        return iter(())


def _of_each(site: str, factor: Factor, form: ExpertForm) -> bool:
    """Whether each expert has a matrix of its own there."""
    return site in OUTER and (form == "per_expert" or OUTER[site] != factor)

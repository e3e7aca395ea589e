"""Which name means which loss."""

from __future__ import annotations

from collections.abc import Mapping

from loreloop.engine.losses.cispo import Cispo
from loreloop.engine.losses.cross_entropy import CrossEntropy
from loreloop.engine.losses.dro import Dro
from loreloop.engine.losses.gspo import Gspo
from loreloop.engine.losses.importance_sampling import ImportanceSampling
from loreloop.engine.losses.loss import Loss
from loreloop.engine.losses.ppo import Ppo
from loreloop.engine.losses.stable_reinforce import StableReinforce

LOSSES: Mapping[str, Loss] = {
    "cross_entropy": CrossEntropy(),
    "importance_sampling": ImportanceSampling(),
    "ppo": Ppo(),
    "cispo": Cispo(),
    "dro": Dro(),
    "gspo": Gspo(),
    "stable_reinforce": StableReinforce(),
}

# What any of them takes. One datum may be made for several losses, so each lets pass what only the others use.
KNOWN_INPUTS = frozenset(name for loss in LOSSES.values() for name in (*loss.required, *loss.optional))

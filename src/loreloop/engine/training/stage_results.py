"""What the stages of a pipeline have found out of a pass, put together on all of them: the last one has its
log-probabilities and its loss, and each knows where its own layers have routed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec
import numpy as np
import torch
from torch import Tensor

from loreloop.engine.training.expert_load import ExpertLoad
from loreloop.parallel.stages import Stage
from loreloop.protocol.training import ForwardBackward


class Work(Protocol):
    """A pass that has been computed; see `trainer.TrainPass`."""

    op: ForwardBackward
    logps: dict[int, Tensor]
    loss_sum: float
    load: ExpertLoad | None


class _Found(msgspec.Struct, frozen=True):
    logps: dict[int, bytes]
    loss_sum: float
    load: tuple[int, bytes, tuple[int, ...]] | None


def share_results(works: Sequence[Work], stage: Stage) -> None:
    """Gives the passes on every stage what they have on one. All stages must call it."""
    if stage.n_stages == 1:
        return
    mine = [
        _Found(
            logps={index: logp.numpy().tobytes() for index, logp in work.logps.items()},
            loss_sum=work.loss_sum,
            load=work.load.told() if work.load else None,
        )
        for work in works
    ]
    said = [msgspec.msgpack.decode(each, type=list[_Found]) for each in stage.all_say(msgspec.msgpack.encode(mine))]
    for index, work in enumerate(works):
        found = [of_stage[index] for of_stage in said]
        work.loss_sum = found[-1].loss_sum
        work.logps = {
            at: torch.from_numpy(np.frombuffer(logp, np.float32).copy()).reshape(
                work.op.data[at].inputs["target_tokens"].shape
            )
            for at, logp in found[-1].logps.items()
        }
        # Layers stand in the order of stages, so what was counted of them is laid one behind the other.
        if loads := [each.load for each in found if each.load]:
            work.load = ExpertLoad.of(loads)

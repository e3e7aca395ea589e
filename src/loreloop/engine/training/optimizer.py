"""AdamW on flat vectors, in place: decoupled decay, bias correction, a bound on the global gradient norm.

Works through the vectors in chunks, so that its temporaries stay small. Knows no layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from loreloop.engine.contract import HalfChanged, Pause, no_pause
from loreloop.engine.training.model_state import ModelState
from loreloop.protocol.errors import BadRequest, outcome_of
from loreloop.protocol.training import AdamParams

CHUNK = 1 << 20
LARGEST_NORM = 1e18  # its square still fits the second moment, an fp32 number


@dataclass(frozen=True)
class _Rooms:
    """Where a chunk's numbers are worked out, in fp32 and in double precision."""

    plain: Tensor
    double: Tensor


def adam_step(state: ModelState, params: AdamParams, pause: Pause = no_pause) -> dict[str, float]:
    """One step with the gradients gathered so far, which it clears; gives their L2 norm and that of the update.

    Without gradients nothing moves. Gradients that are not finite (or whose square would not be) fail the
    step: they are cleared and nothing else changes. HalfChanged where a fault of ours stops it amid the numbers.
    """
    if not state.has_grad:
        return {"unclipped_grad_l2:mean": 0.0, "update_l2:mean": 0.0}
    state.share.sum_up(state.gradient)
    # In double precision: the squares of millions of fp32 numbers may overflow, or lose the small ones.
    counted = _counted(state)
    rooms = _Rooms(torch.empty_like(state.grad[:CHUNK]), torch.empty_like(state.grad[:CHUNK], dtype=torch.float64))
    square = 0.0
    for grad, own in zip(state.grad.split(CHUNK), counted, strict=True):
        square += _square(grad, own, rooms)
        pause()
    norm = math.sqrt(state.share.place.total(square))
    # Written so that NaN, which compares false with everything, is refused as well.
    if not norm <= LARGEST_NORM:
        state.clear_grad()
        raise BadRequest(
            "The gradients gathered since the last step hold NaN, infinite or enormous values (most "
            "likely an overflowing ratio or weight). They were cleared; the weights and the optimizer are unchanged."
        )
    # A bound of zero or less turns clipping off.
    clip = min(1.0, params.grad_clip_norm / norm) if params.grad_clip_norm > 0 and norm > 0 else 1.0
    # Like the rooms, so that nothing can fail for want of memory once the first number is changed.
    state.own_weights()
    squares = outcome_of(partial(_move, state, params, clip, rooms, counted, pause))
    if isinstance(squares, Exception):
        raise HalfChanged(f"a step of the optimizer has failed amid its numbers: {squares!r}") from squares
    return {"unclipped_grad_l2:mean": norm, "update_l2:mean": math.sqrt(state.share.place.total(squares))}


def _move(
    state: ModelState,
    params: AdamParams,
    clip: float,
    rooms: _Rooms,
    counted: Sequence[Tensor | None],
    pause: Pause,
) -> float:
    """The step itself; gives the square of the update's norm, as far as it is counted here."""
    state.n_steps += 1
    squares = 0.0
    vectors = (state.master, state.moment1, state.moment2, state.grad)
    chunks = (vector.split(CHUNK) for vector in vectors)
    for master, moment1, moment2, grad, own in zip(*chunks, counted, strict=True):
        grad.mul_(clip)
        moment1.lerp_(grad, 1 - params.beta1)
        # The clipped gradient enters both moments, so that the bound holds for the direction and for its scale.
        moment2.mul_(params.beta2).addcmul_(grad, grad, value=1 - params.beta2)
        # Bias correction of both moments as in Adam (Kingma & Ba, 2015), eps outside the root.
        scale = rooms.plain[: len(grad)]
        torch.div(moment2, 1 - params.beta2**state.n_steps, out=scale).sqrt_().add_(params.eps)
        update = torch.div(moment1, scale, out=scale).mul_(1 / (1 - params.beta1**state.n_steps))
        # Decay joins after the division by the scale, which is what makes it decoupled (Loshchilov & Hutter, 2019).
        update.add_(master, alpha=params.weight_decay).mul_(params.learning_rate)
        master.sub_(update)
        squares += _square(update, own, rooms)
        pause()
    state.clear_grad()
    state.refresh_weights()
    return squares


def _counted(state: ModelState) -> Sequence[Tensor | None]:
    """By chunk which numbers count: what several processes hold counts on one of them."""
    counted = state.share.counted
    # A stage of a pipeline may hold nothing of an adapter; what is split is one empty chunk then.
    return [None] * max(1, -(-state.grad.numel() // CHUNK)) if counted is None else counted.split(CHUNK)


def _square(numbers: Tensor, counted: Tensor | None, rooms: _Rooms) -> float:
    if counted is not None:
        numbers = numbers[counted]
    return float(rooms.double[: len(numbers)].copy_(numbers).square_().sum())

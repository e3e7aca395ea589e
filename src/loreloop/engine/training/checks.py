"""Refuses training passes that cannot mean anything, before they touch a model.

A pass goes in, and its data come out as sequences; BadRequest says which datum and which input is wrong and what would
be right. Looks at values only.
"""

from __future__ import annotations

import numpy as np

from loreloop.engine.images import ImageTable, TokenSequence, text_only
from loreloop.engine.losses.loss import Loss
from loreloop.engine.losses.table import KNOWN_INPUTS, LOSSES
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.tensors import Tensor
from loreloop.protocol.token_ids import unpack_ids
from loreloop.protocol.training import Datum, ForwardBackward, TextChunk


def check_pass(
    op: ForwardBackward, vocab_size: int, context_window: int, images: ImageTable | None = None
) -> tuple[TokenSequence, ...]:
    """The pass's data, each laid out as one sequence."""
    loss = LOSSES.get(op.loss_fn)
    if loss is None:
        raise BadRequest(f"The loss {op.loss_fn!r} is unknown; known are {', '.join(sorted(LOSSES))}.")
    # A misspelt setting would otherwise be ignored, and the user would train with the default.
    unknown = sorted(set(op.loss_config) - set(loss.config))
    if unknown:
        known = ", ".join(sorted(loss.config)) or "none"
        raise BadRequest(f"{op.loss_fn} has no setting {', '.join(unknown)}; its settings: {known}.")
    if not all(np.isfinite(value) for value in op.loss_config.values()):
        raise BadRequest(f"The settings of {op.loss_fn} must be finite numbers.")
    if not op.data:
        raise BadRequest("The batch holds no datum; send at least one.")
    sequences = []
    for index, datum in enumerate(op.data):
        # Laid out here, since only the layout knows how many tokens an image is.
        sequences.append(_laid_out(f"Datum {index}", datum, images or text_only()))
        n_tokens = len(sequences[-1].tokens)
        _check_tokens(f"Datum {index}", datum, n_tokens, vocab_size, context_window)
        _check_inputs(f"Datum {index}", datum, op.loss_fn, loss, n_tokens)
        _check_ids(f"Datum {index}, target_tokens", datum.inputs["target_tokens"].numpy(), vocab_size)
    return tuple(sequences)


def _laid_out(where: str, datum: Datum, images: ImageTable) -> TokenSequence:
    try:
        return images.lay_out(datum.chunks)
    except BadRequest as error:
        # The error of the images knows nothing of data, so the place is put before it.
        raise BadRequest(f"{where}: {error.message}") from None


def _check_tokens(where: str, datum: Datum, n_tokens: int, vocab_size: int, context_window: int) -> None:
    if n_tokens == 0:
        raise BadRequest(f"{where} is empty; its model_input needs at least one token.")
    if n_tokens > context_window:
        raise BadRequest(f"{where} has {n_tokens} tokens; the context window is {context_window}.")
    for chunk in datum.chunks:
        if isinstance(chunk, TextChunk):
            _check_ids(f"{where}, model_input", unpack_ids(chunk.tokens), vocab_size)


def _check_inputs(where: str, datum: Datum, name: str, loss: Loss, n_tokens: int) -> None:
    if not set(loss.required) <= set(datum.inputs) <= KNOWN_INPUTS:
        unknown = set(datum.inputs) - KNOWN_INPUTS
        raise BadRequest(
            f"{where} has the loss inputs {_names(datum.inputs)}; {name} needs {_names(loss.required)}"
            + (f" and takes {_names(loss.optional)}" if loss.optional else "")
            + (f". No loss knows {_names(unknown)}; leave it out." if unknown else ".")
        )
    target = datum.inputs["target_tokens"]
    for key in datum.inputs.keys() & {*loss.required, *loss.optional}:  # what other losses use is not looked at
        _check_input(f"{where}, {key}", key, datum.inputs[key], n_tokens, target.shape)


def _check_input(where: str, key: str, tensor: Tensor, n_tokens: int, target_shape: tuple[int, ...]) -> None:
    wanted = "int64" if key == "target_tokens" else "float32"
    if tensor.dtype != wanted:
        raise BadRequest(f"{where} has the dtype {tensor.dtype}; it must be {wanted}.")
    if len(tensor.shape) not in (1, 2) or tensor.shape[0] != n_tokens:
        raise BadRequest(f"{where} has the shape {list(tensor.shape)}; model_input has {n_tokens} tokens.")
    # Broadcasting would make sense of some unequal shapes, and rarely the sense that was meant.
    if tensor.shape != target_shape:
        raise BadRequest(
            f"{where} has the shape {list(tensor.shape)} and target_tokens {list(target_shape)}; they must be equal."
        )
    if len(tensor.shape) == 2 and tensor.shape[1] == 0:
        raise BadRequest(f"{where} has no column; give at least one target a position.")
    # One NaN in a datum would spread through the shared gradient to every other.
    if wanted == "float32" and not np.isfinite(tensor.numpy()).all():
        raise BadRequest(f"{where} holds NaN or infinite values; all must be finite.")


def _check_ids(where: str, ids: np.ndarray[tuple[int, ...], np.dtype[np.generic]], vocab_size: int) -> None:
    bad = ids[(ids < 0) | (ids >= vocab_size)]  # type: ignore[operator]
    if bad.size:
        raise BadRequest(f"{where} holds the token id {int(bad.flat[0])}; ids go from 0 to {vocab_size - 1}.")


def _names(keys: object) -> str:
    return ", ".join(sorted(keys)) or "none"  # type: ignore[call-overload]

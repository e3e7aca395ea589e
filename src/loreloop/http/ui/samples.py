"""What a step has learned from, as samples: tokens with what the trainer and the sampler thought of them, answers to
the same prompt as a group, and how many samples had which advantage. Pure: knows neither store nor pages."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from loreloop.protocol.tensors import Tensor
from loreloop.protocol.token_ids import unpack_ids
from loreloop.protocol.training import Datum, all_ids
from loreloop.store.step_passes import SeenPass

Floats = NDArray[np.float64]
Texts = Callable[[Sequence[int]], list[str]]
Colouring = Literal["difference", "advantage", "surprise"]
MOST_TOKENS = 1000  # shown of one sample
N_BINS = 10


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """A target with the natural logarithms that belong to it; None for what was not sent along. `is_learned` says
    whether the loss looks at it."""

    text: str
    is_learned: bool
    trainer: float | None
    sampler: float | None
    advantage: float | None

    @property
    def difference(self) -> float | None:
        """Trainer less sampler; None where either is not known."""
        known = self.trainer is not None and self.sampler is not None
        return self.trainer - self.sampler if known else None  # type: ignore[operator]


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One sequence of a step. `group` is the number of its prompt; `advantage` and `difference` are means over what was
    learned from."""

    number: int
    group: int
    loss: str
    n_tokens: int
    n_learned: int
    advantage: float | None
    difference: float | None
    tokens: tuple[Token, ...] = ()


class Bin(msgspec.Struct, frozen=True):
    """How many samples have an advantage from `low` up to `high`."""

    low: float
    high: float
    n: int


class Arrays(msgspec.Struct, frozen=True):
    """A datum as arrays, all as long as its targets."""

    ids: NDArray[np.int64]
    learned: NDArray[np.bool_]
    trainer: Floats | None
    sampler: Floats | None
    advantages: Floats | None
    prompt: bytes
    loss: str


def samples_of(passes: Sequence[SeenPass]) -> list[tuple[Sample, Arrays]]:
    """Every datum that has one target a position, without its tokens; those of one prompt have one group."""
    groups: dict[bytes, int] = {}
    found = list[tuple[Sample, Arrays]]()
    for seen in passes:
        for place, datum in enumerate(seen.op.data):
            outputs = seen.result.outputs[place] if seen.result and place < len(seen.result.outputs) else {}
            read = _read(datum, outputs, seen.op.loss_fn)
            if read is not None:
                group = groups.setdefault(read.prompt, len(groups))
                found.append((_sample(len(found), group, read), read))
    return found


def with_tokens(sample: Sample, read: Arrays, texts: Texts) -> Sample:
    """The sample with its first tokens."""
    shown = texts([int(each) for each in read.ids[:MOST_TOKENS]])
    tokens = tuple(
        Token(
            text=text,
            is_learned=bool(read.learned[place]),
            trainer=_at(read.trainer, place),
            sampler=_at(read.sampler, place),
            advantage=_at(read.advantages, place),
        )
        for place, text in enumerate(shown)
    )
    return msgspec.structs.replace(sample, tokens=tokens)


def bins_of(samples: Sequence[Sample]) -> list[Bin]:
    """A histogram of the advantages; empty where no sample has one."""
    values = [sample.advantage for sample in samples if sample.advantage is not None]
    if not values:
        return []
    low, high = min(values), max(values)
    if low == high:
        return [Bin(low, high, len(values))]
    width = (high - low) / N_BINS
    counts = [0] * N_BINS
    for value in values:
        counts[_bin_of(value, low, width)] += 1
    return [Bin(low + place * width, low + (place + 1) * width, n) for place, n in enumerate(counts)]


def in_bin(sample: Sample, bins: Sequence[Bin], place: int) -> bool:
    """Whether a sample is among those that a bin counts."""
    if sample.advantage is None:
        return False
    if len(bins) == 1:
        return place == 0
    return _bin_of(sample.advantage, bins[0].low, bins[0].high - bins[0].low) == place


def shade_of(token: Token, by: Colouring, largest: float) -> str:
    """The name of a token's colour: two steps below, two above, or none. `largest` is the largest advantage."""
    if not token.is_learned:
        return "unlearned"
    if by == "advantage":
        value = (token.advantage or 0.0) / largest if largest else 0.0
        return _shade(value, 0.01, 0.5)
    if by == "surprise":
        return _shade(token.trainer or 0.0, 1.0, 4.0)
    return _shade(token.difference or 0.0, 0.1, 0.5)


def _shade(value: float, some: float, much: float) -> str:
    side = "above" if value > 0 else "below"
    return "" if abs(value) < some else f"{side}-1" if abs(value) < much else f"{side}-2"


def _bin_of(value: float, low: float, width: float) -> int:
    return min(N_BINS - 1, int((value - low) / width)) if width else 0


def _read(datum: Datum, outputs: dict[str, Tensor], loss: str) -> Arrays | None:
    targets = _array(datum.inputs.get("target_tokens"))
    if targets is None or not targets.size:
        return None
    n = targets.size
    advantages, sampler = _array(datum.inputs.get("advantages"), n), _array(datum.inputs.get("logprobs"), n)
    weights = _array(datum.inputs.get("weights"), n)
    if weights is not None:
        learned = weights != 0
    elif sampler is not None or advantages is not None:
        zeros = np.zeros(n)
        # Where all answers of a group earned the same every advantage is zero; a sampled token still has its own
        # log-probability.
        learned = ((zeros if advantages is None else advantages) != 0) | ((zeros if sampler is None else sampler) != 0)
    else:
        learned = np.ones(n, bool)
    first = int(learned.argmax()) if learned.any() else n
    ids = unpack_ids(all_ids(datum.chunks))
    return Arrays(
        ids=targets.astype(np.int64),
        learned=learned,
        trainer=_array(outputs.get("logprobs"), n),
        sampler=sampler,
        advantages=advantages,
        prompt=ids[: first + 1].tobytes(),
        loss=loss,
    )


def _sample(number: int, group: int, read: Arrays) -> Sample:
    differs = read.trainer - read.sampler if read.trainer is not None and read.sampler is not None else None
    return Sample(
        number=number,
        group=group,
        loss=read.loss,
        n_tokens=int(read.ids.size),
        n_learned=int(read.learned.sum()),
        advantage=_mean(read.advantages, read.learned),
        difference=_mean(differs, read.learned),
    )


def _array(tensor: Tensor | None, n: int | None = None) -> Floats | None:
    """One value a position; None for anything else."""
    if tensor is None or len(tensor.shape) != 1 or (n is not None and tensor.shape[0] != n):
        return None
    return tensor.numpy().astype(np.float64)


def _mean(values: Floats | None, learned: NDArray[np.bool_]) -> float | None:
    if values is None or not learned.any():
        return None
    found = float(values[learned].mean())
    return found if math.isfinite(found) else None


def _at(values: Floats | None, place: int) -> float | None:
    found = None if values is None else float(values[place])
    return found if found is not None and math.isfinite(found) else None


def first_of(groups: Sequence[Sequence[Sample]], most: int) -> list[list[Sample]]:
    """The first groups, whole but for the last one, with no more than so many samples together."""
    found, left = list[list[Sample]](), most
    for group in groups:
        if left <= 0:
            break
        found.append(list(islice(group, left)))
        left -= len(found[-1])
    return found

"""Short ways to write operations down."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from loreloop.protocol.sampling import SampleOp, SamplingParams
from loreloop.protocol.tensors import tensor_of
from loreloop.protocol.training import (
    AdamParams,
    CreateModel,
    Datum,
    ForwardBackward,
    LoraSpec,
    OptimStep,
    SaveState,
    SkipSeq,
    TextChunk,
)


def rid(model: str, seq: int) -> str:
    return f"{model}:{seq}"


def create(model: str, *, rank: int = 8, seed: int = 1) -> CreateModel:
    return CreateModel(model, 0, rid(model, 0), LoraSpec(rank, seed))


def forward_backward(model: str, seq: int, n_tokens: int = 4, *, loss: str = "cross_entropy") -> ForwardBackward:
    tokens = np.arange(seq, seq + n_tokens, dtype=np.int64)
    datum = Datum((TextChunk(tokens.astype("<i4").tobytes()),), {"target_tokens": tensor_of(tokens)})
    return ForwardBackward(model, seq, rid(model, seq), (datum,), loss, {})


def step(model: str, seq: int) -> OptimStep:
    return OptimStep(model, seq, rid(model, seq), AdamParams(learning_rate=0.01))


def save(model: str, seq: int, folder: Path) -> SaveState:
    return SaveState(model, seq, rid(model, seq), str(folder / f"{model}-{seq}"))


def skip(model: str, seq: int) -> SkipSeq:
    return SkipSeq(model, seq, rid(model, seq))


def sample(
    request_id: str,
    owner: str = "ann",
    *,
    n: int = 1,
    max_tokens: int = 3,
    stop: tuple[str, ...] = (),
    stream: bool = False,
    seed: int = 5,
) -> SampleOp:
    prompt = (TextChunk(np.array([1, 2, 3], "<i4").tobytes()),)
    params = SamplingParams(max_tokens, seed=seed, stop_strings=stop, stop_tokens=(0,))
    return SampleOp(request_id, owner, None, prompt, n, params, stream=stream)

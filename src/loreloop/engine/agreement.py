"""Whether an engine agrees with itself: the same text, scored in pieces, beside others and by training.

Each check goes two ways to the same log-probabilities and says how far apart they end, in nats. It goes over the
contract alone, so that whatever keeps it can be measured. Knows no files but those of an adapter that it makes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loreloop.engine.contract import Engine, PromptEvent, SampleFailed, TokenEvent
from loreloop.protocol.errors import ServerError
from loreloop.protocol.sampling import PromptScores, Revision, SampleOp, SamplingParams
from loreloop.protocol.tensors import tensor_of
from loreloop.protocol.token_ids import Logprobs, pack_ids, unpack_ids, unpack_logprobs
from loreloop.protocol.training import (
    AdamParams,
    CreateModel,
    Datum,
    Failure,
    ForwardBackward,
    LoraSpec,
    OptimStep,
    SaveSampler,
    TextChunk,
    all_ids,
)

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]
MODEL = REVISION = "agreement"
RANK = 8
LEARNING_RATE = 5e-3  # one step of it moves log-probabilities far more than rounding does
PROMPT_TOKENS, SPLIT_TOKENS = 48, 192  # at most; a small window takes less
NEW_TOKENS, N_TEXTS = 32, 8


@dataclass(frozen=True)
class Difference:
    """How far two ways to the log-probabilities of `n_tokens` tokens lie apart, in nats; NaN if one was no number."""

    name: str
    n_tokens: int
    largest: float
    mean: float


@dataclass
class Drawn:
    """What came of one sample of one request."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    routes: bytes = b""
    scores: Logprobs | None = None


def differences(engine: Engine) -> Iterator[Difference]:
    """All checks, each as soon as it is made, with an adapter that is gone afterwards. ServerError where one cannot be
    made."""
    window, rng = engine.info.context_window, np.random.default_rng(0)
    n_prompt = max(2, min(PROMPT_TOKENS, window // 2))
    n_new = max(1, min(NEW_TOKENS, window - n_prompt - 1))
    texts = [rng.integers(0, engine.info.vocab_size, n_prompt) for _ in range(N_TEXTS)]
    long_text = rng.integers(0, engine.info.vocab_size, max(4, min(SPLIT_TOKENS, window - 1)))
    with _adapter(engine, texts) as revision:
        ops = [_op(f"text-{i}", text, revision, n_new) for i, text in enumerate(texts)]
        yield _difference("split", _split(engine, revision, long_text))
        yield _difference("co-batch of samples", _beside_samples(engine, revision, ops))
        yield _difference("co-batch of training", _beside_data(engine, texts))
        yield _difference("mismatch", sampled_minus_trained(engine, MODEL, ops))


def sampled_minus_trained(engine: Engine, model_id: str, ops: Sequence[SampleOp]) -> Floats:
    """Draws all samples beside one another; gives for each token what sampling said of it less what training computes
    with the model that the samples' adapter was made of."""
    drawn, found = _run(engine, ops), list[Floats]()
    for op in ops:
        prompt, answer = unpack_ids(all_ids(op.prompt)), drawn[op.request_id]
        text = np.concatenate([prompt, answer.tokens]).astype(np.int64)
        # As the server does it: tokens go to the experts that sampling chose.
        (trained,) = _trained(engine, model_id, [_datum(text, answer.routes or None)])
        found.append(np.array(answer.logprobs) - trained[len(prompt) - 1 :])
    return np.concatenate(found)


def _split(engine: Engine, revision: Revision, text: Ids) -> Floats:
    """A text's end scored behind its cached beginning, less the same out of one piece."""
    n_known = len(text) // 2
    n_scored = len(text) - n_known - 1  # the score behind the beginning needs a state that the cache does not give
    _run(engine, [_op("beginning", text[:n_known], revision, 1)])
    pieces = _scores(engine, text, revision, PromptScores(logprobs=True, last_n=n_scored))
    # All positions are scored, so all are computed, whatever is known by now.
    whole = _scores(engine, text, revision, PromptScores(logprobs=True))
    return pieces[-n_scored:] - whole[-n_scored:]


def _beside_samples(engine: Engine, revision: Revision, ops: Sequence[SampleOp]) -> Floats:
    """Samples drawn each alone, less the same drawn in one company; as long as they draw the same tokens."""
    alone = {op.request_id: _fresh(engine, revision, [op])[op.request_id] for op in ops}
    together, found = _fresh(engine, revision, ops), list[Floats]()
    for name, answer in alone.items():
        other = together[name]
        same = np.array(answer.tokens) == np.array(other.tokens)
        # Behind another token the two are about different texts.
        n_same = len(same) if same.all() else int(same.argmin())
        found.append(np.array(answer.logprobs[:n_same]) - np.array(other.logprobs[:n_same]))
    return np.concatenate(found)


def _beside_data(engine: Engine, texts: Sequence[Ids]) -> Floats:
    """Texts scored by training each in a pass of its own, less the same in one pass."""
    data = [_datum(text) for text in texts]
    alone = [_trained(engine, MODEL, [datum])[0] for datum in data]
    return np.concatenate(alone) - np.concatenate(_trained(engine, MODEL, data))


@contextmanager
def _adapter(engine: Engine, texts: Sequence[Ids]) -> Iterator[Revision]:
    """A model that has learned one step, so that its adapter changes something, and its weights for sampling."""
    with tempfile.TemporaryDirectory(prefix="loreloop-agreement-") as folder:
        lora = LoraSpec(min(RANK, engine.info.max_lora_rank), 1, train_unembed=False)
        engine.create_model(CreateModel(model_id=MODEL, seq_id=0, request_id=f"{MODEL}:0", lora=lora))
        try:
            _trained(engine, MODEL, [_datum(text) for text in texts], forward_only=False)
            engine.optim_step(OptimStep(MODEL, 2, f"{MODEL}:2", AdamParams(learning_rate=LEARNING_RATE)))
            at = str(Path(folder) / "revision")
            saving = SaveSampler(
                model_id=MODEL, seq_id=3, request_id=f"{MODEL}:3", folder=at, revision_id=REVISION, durable=False
            )
            engine.save_sampler(saving)
            yield Revision(REVISION, at)
        finally:
            engine.drop_revision(REVISION)
            engine.drop_model(MODEL)


def _fresh(engine: Engine, revision: Revision, ops: Sequence[SampleOp]) -> dict[str, Drawn]:
    """As `_run`, with nothing known of the prompts: what the cache adds is a check of its own."""
    engine.drop_revision(revision.revision_id)
    return _run(engine, ops)


def _scores(engine: Engine, text: Ids, revision: Revision, scores: PromptScores) -> Floats:
    op = _op("scored", text, revision, 1, scores)
    found = _run(engine, [op])[op.request_id].scores
    if found is None:
        raise ServerError(f"The engine of {engine.info.base_model} gave no scores of a prompt; it cannot be checked.")
    return unpack_logprobs(found).astype(np.float64)


def _run(engine: Engine, ops: Sequence[SampleOp]) -> dict[str, Drawn]:
    """Draws all samples, as many at a time as there is room for. ServerError where one fails."""
    drawn, waiting = {op.request_id: Drawn() for op in ops}, list(ops)
    while waiting or engine.sampling:
        while waiting and engine.admit(waiting[0]):
            waiting.pop(0)
        for event in engine.sample_step():
            answer = drawn[event.request_id]
            match event:
                case SampleFailed():
                    raise _refused(engine, event.failure)
                case PromptEvent():
                    answer.scores = event.report.logprobs
                case TokenEvent():
                    answer.tokens.append(event.token)
                    answer.logprobs.append(event.logprob)
                    answer.routes += event.routes or b""
    return drawn


def _trained(engine: Engine, model_id: str, data: Sequence[Datum], *, forward_only: bool = True) -> list[Floats]:
    """What training computes of each datum's targets. ServerError where it refuses them."""
    op = ForwardBackward(
        model_id=model_id,
        seq_id=1,
        request_id=f"{model_id}:1",
        data=tuple(data),
        loss_fn="cross_entropy",
        loss_config={},
        forward_only=forward_only,
    )
    (result,) = engine.train([op], lambda: None)
    if isinstance(result, Failure):
        raise _refused(engine, result)
    return [output["logprobs"].numpy().astype(np.float64) for output in result.outputs]


def _refused(engine: Engine, failure: Failure) -> ServerError:
    return ServerError(f"The engine of {engine.info.base_model} cannot be checked: {failure.message}")


def _op(name: str, text: Ids, revision: Revision, n_new: int, scores: PromptScores | None = None) -> SampleOp:
    return SampleOp(
        request_id=name,
        owner=MODEL,
        revision=revision,
        prompt=(TextChunk(pack_ids(text)),),
        num_samples=1,
        params=SamplingParams(max_tokens=n_new, seed=1),
        scores=scores or PromptScores(),
        routes=True,
    )


def _datum(text: Ids, routes: bytes | None = None) -> Datum:
    """Every token but the first is learned from those before it."""
    inputs = {"target_tokens": tensor_of(text[1:]), "weights": tensor_of(np.ones(len(text) - 1, np.float32))}
    return Datum((TextChunk(pack_ids(text[:-1])),), inputs, routes=routes)


def _difference(name: str, values: Floats) -> Difference:
    sizes = np.abs(values)
    return Difference(name, len(sizes), float(sizes.max(initial=0.0)), float(sizes.mean()) if len(sizes) else 0.0)

"""A rank of a model that sees, where sequences show one image, several or none, or one that cannot be decoded."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from loreloop.engine import images as engine_images
from loreloop.engine.contract import SampleFailed
from loreloop.engine.local import LocalEngine
from loreloop.parallel.place import Place
from loreloop.protocol.errors import BadRequest, LoreloopError
from loreloop.protocol.sampling import SampleOp
from loreloop.protocol.training import AdamParams, Chunk, CreateModel, Datum, Failure, LoraSpec, OptimStep
from tests.engine.train_rig import train_pass
from tests.engine.vision_rig import image, sample_of, text, vision_datum
from tests.parallel.life import Seen, engine_at, sampled, saved, trained
from tests.tiny_vision import picture

SEEN = [
    (text(10, 11), image(picture(70, 90)), text(12), image(picture(seed=3)), text(13, 14)),
    (text(10, 11), image(picture(70, 90)), text(15)),
    (text(20, 21, 22, 23),),
    (image(picture(64, 96, seed=4)), text(30, 31)),
]
MICRO_BATCHES = {"train_tokens": 32}  # of these a pass has several


def seeing_rank(place: Place, folder: Path, work: Path, settings: dict[str, Any]) -> Seen:
    """Three steps over all sequences in several micro-batches, then samples beside one another."""
    engine = engine_at(place, folder, work, MICRO_BATCHES | settings)
    engine.create_model(CreateModel("a", 0, "r", LoraSpec(4, 0)))
    losses, logps = [], []
    for _ in range(3):
        loss, found = trained(engine, "a", *(datum_of(engine, chunks) for chunks in SEEN))
        losses.append(loss)
        logps.append(torch.cat(found))
        engine.optim_step(OptimStep("a", 5, "r", AdamParams(learning_rate=1e-2)))
    answers = sampled(engine, *asked(saved(engine, "a", work / "a")))
    assert engine.images.n_computed == 3
    engine.trainer.stage.outbox.wait()
    return {"losses": losses, "logps": torch.stack(logps)} | told(answers)


def struck_rank(place: Place, folder: Path, work: Path, fault: str) -> Seen:
    """Passes and samples of which one shows a `broken` image, or one that the last process alone (`there`) cannot
    decode, beside others; then the others alone."""
    engine = engine_at(place, folder, work, MICRO_BATCHES | {"deterministic": True})
    engine.create_model(CreateModel("a", 0, "r", LoraSpec(4, 0)))
    data = [datum_of(engine, chunks) for chunks in SEEN]
    shown = picture(48, 48, seed=9)
    bad = (text(1, 2), image(shown[:-300] if fault == "broken" else shown), text(3))
    # As many tokens as it would have; nothing of the image itself is looked at for that.
    spoiled = vision_datum(bad, 3 + n_tokens_of(engine, picture(48, 48, seed=8)))
    if fault == "there" and place.rank == place.n_ranks - 1:
        engine_images.read_image = not_here(shown)
    passes = [train_pass(*some, model="a") for some in (data[:2], [data[2], spoiled], data[2:])]
    try:
        results = engine.train(passes, lambda: None)
    except LoreloopError as error:
        results = [error.message]
    said = [each.message if isinstance(each, Failure) else each for each in results]
    engine.bank.get("a").clear_grad()
    loss, logps = trained(engine, "a", *data)
    failures = refused(engine, sample_of(bad, request="bad"))
    answers = sampled(engine, *asked(""))
    engine.trainer.stage.outbox.wait()
    return {
        "said": [each for each in said if isinstance(each, str)],
        "beside": [each.metrics["loss:sum"] for each in said if not isinstance(each, str)],
        "loss": loss,
        "logps": torch.cat(logps),
        "failures": failures,
    } | told(answers)


def datum_of(engine: LocalEngine, chunks: Sequence[Chunk]) -> Datum:
    return vision_datum(tuple(chunks), len(engine.images.lay_out(chunks).tokens))


def n_tokens_of(engine: LocalEngine, data: bytes) -> int:
    return len(engine.images.lay_out((image(data),)).tokens)


def asked(revision: str) -> list[SampleOp]:
    return [
        sample_of(tuple(chunks), request=str(number), n=1 + number % 2, max_tokens=6, revision=revision)
        for number, chunks in enumerate(SEEN)
    ]


def refused(engine: LocalEngine, op: SampleOp) -> list[str]:
    """What a sample fails with that runs beside others."""
    for other in asked(""):
        assert engine.admit(other)
    assert engine.admit(op)
    events = []
    while engine.sampling:
        events += engine.sample_step()
    return [event.failure.message for event in events if isinstance(event, SampleFailed)]


def told(answers: dict[str, Any]) -> Seen:
    return {
        "tokens": {name: dict(answer.tokens) for name, answer in answers.items()},
        "logprobs": {name: dict(answer.logprobs) for name, answer in answers.items()},
    }


def not_here(shown: bytes) -> Any:
    """Decodes all images but one, as with a library that lacks a format."""
    read_image = engine_images.read_image

    def reading(data: bytes, limits: Any) -> Any:
        if data == shown:
            raise BadRequest("The image cannot be decoded: not on this host.")
        return read_image(data, limits)

    return reading

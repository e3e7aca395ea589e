"""What an engine does in its life, as one process or as one rank of several, and what has come of it at the end."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from loreloop.config import EngineConfig
from loreloop.engine.local import LocalEngine
from loreloop.model.lora import AdapterView
from loreloop.parallel.collectives import SENT, summed
from loreloop.parallel.place import Place
from loreloop.parallel.stages import Lane
from loreloop.protocol.sampling import PromptScores, SampleOp
from loreloop.protocol.tensors import tensor_of
from loreloop.protocol.training import AdamParams, CreateModel, Datum, LoraSpec, OptimStep, SaveSampler
from tests.engine.sample_rig import Answer, folder_revision, sample_op
from tests.engine.train_rig import datum, random_tokens, train_pass

PROMPT = random_tokens(21, 8)
SETTINGS = {"device": "cpu", "precision": "fp32", "threads": 1, "kv_cache_mib": 8}
Seen = dict[str, Any]


class EveryThird:
    """A grammar that admits each third token, as `Constraint` has it."""

    over = False

    def allowed(self) -> np.ndarray:
        return np.arange(512) % 3 == 1

    def take(self, token: int) -> None:
        assert token % 3 == 1

    def copy(self) -> "EveryThird":
        return self


def engine_at(place: Place, folder: Path, work: Path, settings: dict[str, Any]) -> LocalEngine:
    config = EngineConfig(**SETTINGS | settings)
    return LocalEngine(
        config, "tiny", folder, work / f"work{place.rank}", lambda info: lambda text: EveryThird(), place=place
    )


def trained(engine: LocalEngine, model: str, *data: Datum) -> tuple[float, list[torch.Tensor]]:
    (result,) = engine.train([train_pass(*data, model=model)], lambda: None)
    return result.metrics["loss:sum"], [torch.tensor(out["logprobs"].numpy()) for out in result.outputs]


def sampled(engine: LocalEngine, *ops: SampleOp) -> dict[str, Answer]:
    answers = {op.request_id: Answer() for op in ops}
    for op in ops:
        assert engine.admit(op)
    while engine.sampling:
        for event in engine.sample_step():
            answers[event.request_id].add(event)
    assert not any(answer.failures for answer in answers.values())
    return answers


def saved(engine: LocalEngine, model: str, folder: Path) -> str:
    engine.save_sampler(SaveSampler(model, 9, "r", str(folder), model))
    return folder_revision(model, folder)


def life(place: Place, folder: Path, work: Path, settings: dict[str, Any], lora: dict[str, Any]) -> Seen:
    """Two models, of which one at a time is in memory, learn from several passes a step; one of them is sampled from in
    every way."""
    engine = engine_at(place, folder, work, {"resident_models": 1, **settings})
    for seed, model in enumerate("ab"):
        engine.create_model(CreateModel(model, 0, "r", LoraSpec(6, seed, **lora)))
    losses = []
    for step in range(3):
        for part in range(2):
            for model in "ab":
                data = (datum(random_tokens(17 + part, step)), datum(random_tokens(12, 10 + step)))
                losses.append(trained(engine, model, *data)[0])
        for model in "ab":
            engine.optim_step(OptimStep(model, 5, "r", AdamParams(learning_rate=1e-2, grad_clip_norm=1.0)))
    answers = sampled(engine, *every_way(saved(engine, "a", work / "a")))
    state = engine.bank.get("a")
    return {
        "losses": losses,
        "tokens": {name: dict(answer.tokens) for name, answer in answers.items()},
        "logprobs": {name: dict(answer.logprobs) for name, answer in answers.items()},
        "reports": [msgspec.msgpack.encode(answer.prompts) for answer in answers.values()],
        "scores": answers["scored"].report.logprobs,
        "mine": state.master,
        "whole": whole_of(place, state.share.wholes(state.master)),
        "numbers": state.share.share.numbers(state.layout.lora) if place.n_ranks > 1 else None,
    }


def whole_of(place: Place, parts: Iterator[AdapterView]) -> torch.Tensor:
    """On every rank the whole adapter, which the first one is given in parts."""
    whole = [part.flat for part in parts]
    sent = torch.tensor(place.by_first(lambda: torch.cat(whole).tolist(), list))
    return torch.cat(whole) if place.is_first else sent


def every_way(revision: str) -> list[SampleOp]:
    targets = np.full((len(PROMPT) - 1, 2), 7, np.int64)
    scores = PromptScores(logprobs=True, top_k=3, alt_tokens_k=2, targets=tensor_of(targets))

    def op(name: str, **params: Any) -> SampleOp:
        return sample_op(PROMPT, request=name, revision=revision, max_tokens=12, **params)

    return [
        op("plain", n=3),
        op("greedy", temperature=0.0, topk=3),
        op("filtered", temperature=0.8, top_k=20, top_p=0.9, min_p=0.01, filtered=True),
        op("penalized", presence_penalty=0.5, frequency_penalty=0.5, repetition_penalty=1.3, logit_bias=((3, 4.0),)),
        op("grammar", grammar="any", topk=2),
        op("scored", scores=scores, seed=5),
    ]


def replayed(place: Place, folder: Path, work: Path, settings: dict[str, Any]) -> Seen:
    """What is sampled is trained on, with the experts that sampling chose."""
    engine = engine_at(place, folder, work, settings)
    engine.create_model(CreateModel("a", 0, "r", LoraSpec(4, 0)))
    revision = saved(engine, "a", work / "a")
    answer = sampled(engine, sample_op(PROMPT, routes=True, max_tokens=12, n=3, revision=revision))["r"]
    texts = [PROMPT + answer.tokens[index] for index in range(3)]
    data = [
        msgspec.structs.replace(datum(text[:-1], targets=np.asarray(text[1:])), routes=answer.routes[index])
        for index, text in enumerate(texts)
    ]
    _, logps = trained(engine, "a", *data)
    return {
        "sampled": torch.cat([torch.tensor(answer.logprobs[index]) for index in range(3)]),
        "trained": torch.cat([logp[len(PROMPT) - 1 :] for logp in logps]),
        "tokens": answer.tokens[0],
        "routes": answer.routes[0],
    }


def bits(place: Place, folder: Path, work: Path) -> Seen:
    """Log-probabilities of drawn tokens, as they were drawn beside others and as they are trained on."""
    engine = engine_at(place, folder, work, {"deterministic": True})
    engine.create_model(CreateModel("a", 0, "r", LoraSpec(4, 0)))
    answer = sampled(engine, sample_op(PROMPT, max_tokens=12, n=5, revision=saved(engine, "a", work / "a")))["r"]
    texts = [PROMPT + answer.tokens[index] for index in range(5)]
    _, logps = trained(engine, "a", *(datum(text[:-1], targets=np.asarray(text[1:])) for text in texts))
    return {
        "sampled": torch.cat([torch.tensor(answer.logprobs[index]) for index in range(5)]),
        "trained": torch.cat([logp[len(PROMPT) - 1 :] for logp in logps]),
    }


def summed_rows(place: Place) -> Seen:
    """The sum of the ranks' rows, all at once and one by one."""
    x_TD = torch.randn(37, 96, generator=torch.Generator().manual_seed(place.rank))
    group = place.groups["tp"]
    return {"together": summed(x_TD, group), "alone": [summed(row_D[None], group) for row_D in x_TD]}


def pass_and_step(
    place: Place,
    folder: Path,
    work: Path,
    settings: dict[str, Any],
    lora: dict[str, Any],
    one: Datum,
) -> Seen:
    """What is said in a pass, a step, and a step of sampling."""
    engine = engine_at(place, folder, work, settings)
    engine.create_model(CreateModel("a", 0, "r", LoraSpec(4, 0, **lora)))
    handed = engine.trainer.stage.n_bytes
    said = []
    for call in (
        lambda: trained(engine, "a", one),
        lambda: engine.optim_step(OptimStep("a", 5, "r", AdamParams())),
        lambda: sampled(engine, sample_op(PROMPT, max_tokens=1)),
    ):
        before, handed_before = Counter(SENT), handed[Lane.TRAINING] + handed[Lane.SAMPLING]
        call()
        engine.trainer.stage.outbox.wait()
        said.append(dict(SENT - before) | {"hand": handed[Lane.TRAINING] + handed[Lane.SAMPLING] - handed_before})
    share = engine.bank.get("a").share
    return {"said": said, "numbers": share.layout.size}


def vision_life(place: Place, folder: Path, work: Path, settings: dict[str, Any]) -> Seen:
    """A model that sees, trained and sampled."""
    from tests.engine.vision_rig import image, sample_of, text, vision_datum
    from tests.tiny_vision import picture

    engine = engine_at(place, folder, work, settings)
    engine.create_model(CreateModel("a", 0, "r", LoraSpec(4, 0)))
    chunks = (text(10, 11), image(picture(70, 90)), text(12), image(picture(seed=3)), text(13, 14))
    n_tokens = len(engine.images.lay_out(chunks).tokens)
    losses = []
    for _ in range(3):
        losses.append(trained(engine, "a", vision_datum(chunks, n_tokens))[0])
        engine.optim_step(OptimStep("a", 5, "r", AdamParams(learning_rate=1e-2)))
    answer = sampled(engine, sample_of(chunks, max_tokens=8))["r"]
    return {"losses": losses, "tokens": answer.tokens[0], "logprobs": answer.logprobs[0]}

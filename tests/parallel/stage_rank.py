"""A rank that samples, also amid training, and one that breaks off; and what a single process gives."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import Tensor

from loreloop.engine.attention import FastAttention, FixedAttention
from loreloop.engine.contract import Constrain
from loreloop.engine.head import Head
from loreloop.engine.sampling.sampler import Sampler, SamplerLimits, refuse
from loreloop.engine.training.model_state import ModelState, read_checkpoint, write_checkpoint
from loreloop.engine.training.trainer import Trainer
from loreloop.formats.configuration import read_spec
from loreloop.formats.load import load_weights
from loreloop.model.linear import FastProducts, TiledProducts
from loreloop.parallel.adapter_share import AdapterShare
from loreloop.parallel.cut_decoder import decoder_of, holding
from loreloop.parallel.place import Place
from loreloop.parallel.sequence import training_decoder
from loreloop.parallel.stages import Lane, stage_of
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.sampling import PromptScores
from loreloop.text.grammars.grammar import Constraint, Grammars, json_schema_grammar, regex_grammar
from tests.engine.sample_rig import Answer, drain, sample_op
from tests.engine.train_rig import CPU, datum, laid_out, random_tokens, train_pass
from tests.parallel.scene import LORA, scene, whole_state

ROWS = 32
N_REQUESTS, N_PAGES = 7, 20
EOS = 0
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}


class StageRig:
    """A rank's trainer and sampler, with one adapter for both."""

    def __init__(self, place: Place, folder: Path, *, deterministic: bool, constrain: Constrain = refuse) -> None:
        spec, weights = load_weights(folder, dtype=torch.float32, device=CPU, held=holding(place))
        products = TiledProducts() if deterministic else FastProducts()
        attention = FixedAttention() if deterministic else FastAttention()
        decoder = decoder_of(spec, weights, torch.float32, products, place)
        head, self.stage = Head(decoder, fixed_rows=deterministic), stage_of(spec, place)
        limits = SamplerLimits(n_pages=N_PAGES, page_tokens=8, max_running=64, prefill_tokens=24)
        self.trainer = Trainer(training_decoder(decoder, place), attention, head, ROWS, ROWS, stage=self.stage)
        self.sampler = Sampler(decoder, attention, head, limits, constrain, stage=self.stage)
        share = AdapterShare(spec, LORA, place)
        self.state = ModelState(share, torch.float32, CPU)
        self.state.master.copy_(share.take(whole_state(spec).master))
        self.state.refresh_weights()

    def train(self, pause: Callable[[], None] = lambda: None) -> Tensor:
        """Log-probabilities, and the gradient in the state."""
        work = laid_out(scene(), self.state)
        self.trainer.run([work], pause)
        return torch.cat([torch.tensor(output["logprobs"].numpy()) for output in work.result().outputs])

    def admit(self) -> None:
        """Some requests, more than there are pages for; one has two samples, and one asks for all there is."""
        for number in range(N_REQUESTS):
            prompt = [5, 6, 7, *random_tokens(6 + 5 * number, number)]
            scores = PromptScores(logprobs=True, top_k=2) if number == 1 else None
            op = sample_op(
                prompt,
                request=str(number),
                n=1 + (number == 2),
                scores=scores,
                topk=number == 3 and 4,
                routes=number == 4,
                max_tokens=8 + 3 * number,
                seed=number,
                # Rows with an adapter must not share the base's prefixes.
                revision="r" if number % 2 else "",
            )
            self.sampler.admit(op, self.state.weights if number % 2 else None)


def told(answers: dict[str, Answer]) -> dict[str, object]:
    """What can be compared of some answers."""
    return {
        request: (
            sorted(answer.tokens.items()),
            sorted(answer.logprobs.items()),
            sorted(answer.routes.items()),
            sorted(answer.reasons.items()),
            [(event.report.logprobs, event.report.topk) for event in answer.prompts],
            [topk for listed in answer.topk.values() for topk in listed],
        )
        for request, answer in sorted(answers.items())
    }


def sampling_rank(place: Place, folder: Path, deterministic: bool) -> dict[str, object]:
    """Answers of all requests, drawn with nothing else to do; and the bytes of hidden states that were sent."""
    rig = StageRig(place, folder, deterministic=deterministic)
    rig.admit()
    rows = list(rig.sampler.waiting)
    answers = repr(told(drain(rig.sampler)))
    assert any(row.life > 1 for row in rows), "pages are so few that rows give way"
    rig.stage.outbox.wait()
    return {"answers": answers, "sent": rig.stage.n_bytes[Lane.SAMPLING]}


class Fuel:
    """A grammar of tokens that slowly ascend, for which only so many masks are made, as `Constraint` has it."""

    def __init__(self, at: int, left: int) -> None:
        self.at, self.left, self.has_mask = at, left, False

    def allowed(self) -> np.ndarray:
        self.has_mask = True
        ids = np.arange(512)
        return (ids > self.at) & (ids <= self.at + 20)

    def take(self, token: int) -> None:
        self.at, self.left, self.has_mask = token, self.left - self.has_mask, False
        if self.left <= 0:
            raise BadRequest("The grammar cannot be followed: no fuel")

    def copy(self) -> "Fuel":
        copy = Fuel(self.at, self.left)
        copy.has_mask = self.has_mask
        return copy

    @property
    def over(self) -> bool:
        return self.at > 60


def constrained_rank(place: Place, folder: Path) -> str:
    """Answers of requests with grammars: real ones, one that ends texts, and one that cannot be followed for long; with
    so few pages that rows give way."""
    grammars = Grammars.of(folder, read_spec(folder).vocab_size, (EOS,))

    def constrain(grammar: str) -> Constraint:
        return Fuel(-1, int(grammar)) if grammar.isdigit() else grammars.constraint(grammar)

    rig = StageRig(place, folder, deterministic=True, constrain=constrain)
    texts = [json_schema_grammar(SCHEMA), "100", "3", regex_grammar("(ab|cd){1,9}")]
    for number, grammar in enumerate(texts * 3):
        options = {"grammar": grammar, "stop_tokens": (EOS,), "max_tokens": 25, "seed": number}
        op = sample_op(random_tokens(6 + 3 * number, number), request=str(number), n=1 + number % 2, **options)
        rig.sampler.admit(op, None)
    rows = list(rig.sampler.waiting)
    answers = drain(rig.sampler)
    rig.stage.outbox.wait()
    assert any(row.life > 1 for row in rows), "pages are so few that rows give way"
    assert {len(answer.failures) for answer in answers.values()} == {0, 1}
    assert any("stop" in answer.reasons.values() for answer in answers.values())
    return repr((told(answers), [(request, answer.failures) for request, answer in sorted(answers.items())]))


def both_rank(place: Place, folder: Path) -> dict[str, object]:
    """The same amid a training pass: the first steps are taken in its pauses."""
    rig = StageRig(place, folder, deterministic=True)
    rig.admit()
    answers: dict[str, Answer] = {}
    n_pauses = 0

    def pause() -> None:
        nonlocal n_pauses
        n_pauses += 1
        for event in rig.sampler.step() if n_pauses % 3 == 0 else ():
            answers.setdefault(event.request_id, Answer()).add(event)

    logps = rig.train(pause)
    for request, answer in drain(rig.sampler).items():
        for event in (*answer.prompts, *answer.failures):
            answers.setdefault(request, Answer()).add(event)
        known = answers.setdefault(request, Answer())
        for index, tokens in answer.tokens.items():
            known.tokens[index] += tokens
            known.logprobs[index] += answer.logprobs[index]
    rig.stage.outbox.wait()
    drawn = {request: (sorted(a.tokens.items()), sorted(a.logprobs.items())) for request, a in sorted(answers.items())}
    return {"drawn": repr(drawn), "logps": logps, "grad": rig.state.grad, "n_pauses": n_pauses}


def replaying_rank(place: Place, folder: Path) -> dict[str, object]:
    """Two passes in one batch, one of them forwards alone, over data with recorded routes and without."""
    rig = StageRig(place, folder, deterministic=False)
    moe = read_spec(folder).moe
    assert moe is not None
    plain = datum(random_tokens(50, 7))
    chosen = np.random.default_rng(8).permuted(np.tile(np.arange(moe.n_experts), (50, len(moe.layers), 1)), axis=2)
    recorded = msgspec.structs.replace(plain, routes=chosen[..., : moe.top_k].astype("<i2").tobytes())
    ops = [train_pass(recorded, datum(random_tokens(30, 9))), train_pass(plain, recorded, forward_only=True)]
    works = [laid_out(op, rig.state) for op in ops]
    rig.trainer.run(works)
    results = [work.result() for work in works]
    logps = [torch.tensor(output["logprobs"].numpy()) for result in results for output in result.outputs]
    return {"logps": torch.cat(logps), "metrics": [result.metrics for result in results], "grad": rig.state.grad}


class Enough(Exception):
    """Ends a pass."""


def broken_rank(place: Place, folder: Path, after: int) -> dict[str, object]:
    """A pass that is broken off after some pauses, and then one that is not."""
    rig = StageRig(place, folder, deterministic=False)
    n_pauses = 0

    def pause() -> None:
        nonlocal n_pauses
        n_pauses += 1
        if n_pauses == after:
            raise Enough

    broke_off = False
    try:
        rig.train(pause)
    except Enough:
        broke_off = True
    assert not rig.state.grad.any() or not broke_off
    rig.state.clear_grad()
    return {"broke_off": broke_off, "logps": rig.train(), "grad": rig.state.grad}


def saving_rank(place: Place, folder: Path, source: Path, target: Path) -> None:
    """Reads a checkpoint and writes it again."""
    state = ModelState(AdapterShare(read_spec(folder), LORA, place), torch.float32, CPU)
    read_checkpoint(source, state, optimizer=True)
    write_checkpoint(target, state, "tiny")

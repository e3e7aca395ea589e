"""Samplers over a tiny model, with short ways to ask for samples, to run them, and to score what they gave."""

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from loreloop.engine.contract import PromptEvent, SampleEvent, SampleFailed, TokenEvent
from loreloop.engine.sampling.sampler import Sampler, SamplerLimits, refuse
from loreloop.engine.training.model_state import ModelState
from loreloop.model.lora import AdapterView
from loreloop.protocol.sampling import Partial, PromptReport, PromptScores, Revision, SampleOp, SamplingParams, TopK
from loreloop.protocol.training import TextChunk
from tests.engine.page_rig import check_pages
from tests.engine.train_rig import Rig, datum, train_pass


@dataclass
class Answer:
    """What one request brought: a list of tokens and of log-probs a sample."""

    tokens: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    logprobs: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    topk: dict[int, list[TopK]] = field(default_factory=lambda: defaultdict(list))
    filtered: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    routes: dict[int, bytes] = field(default_factory=lambda: defaultdict(bytes))
    reasons: dict[int, str] = field(default_factory=dict)
    prompts: list[PromptEvent] = field(default_factory=list)
    failures: list[SampleFailed] = field(default_factory=list)

    @property
    def report(self) -> PromptReport:
        (event,) = self.prompts
        return event.report

    @property
    def cache_hit_tokens(self) -> int:
        (event,) = self.prompts
        return event.cache_hit_tokens

    def add(self, event: SampleEvent) -> None:
        match event:
            case PromptEvent():
                self.prompts.append(event)
            case SampleFailed():
                self.failures.append(event)
            case TokenEvent():
                assert event.sample_index not in self.reasons, "a finished sample went on"
                self.tokens[event.sample_index].append(event.token)
                self.logprobs[event.sample_index].append(event.logprob)
                if event.topk:
                    self.topk[event.sample_index].append(event.topk)
                if event.filtered_logprob is not None:
                    self.filtered[event.sample_index].append(event.filtered_logprob)
                if event.routes:
                    self.routes[event.sample_index] += event.routes
                if event.finished:
                    self.reasons[event.sample_index] = event.finished


def sample_op(
    prompt, *, request="r", n=1, scores=None, topk=0, revision="", resume=(), filtered=False, routes=False, **params
) -> SampleOp:
    """Eight tokens with seed 1, unless something else is given. `revision` is an id, perhaps `id=folder`."""
    revision_id, _, folder = revision.partition("=")
    chunk = TextChunk(np.asarray(prompt, "<i4").tobytes())
    return SampleOp(
        request,
        "owner",
        Revision(revision_id, folder) if revision_id else None,
        (chunk,),
        n,
        SamplingParams(**({"max_tokens": 8, "seed": 1} | params)),
        scores or PromptScores(),
        topk,
        filtered_logprobs=filtered,
        routes=routes,
        resume=resume,
    )


def make_sampler(
    rig: Rig, *, n_pages=256, page_tokens=8, max_running=64, prefill_tokens=64, constrain=refuse
) -> Sampler:
    limits = SamplerLimits(n_pages, page_tokens, max_running, prefill_tokens)
    return Sampler(rig.decoder, rig.trainer.attention, rig.trainer.head, limits, constrain, rig.images)


def run(sampler: Sampler, *requests: SampleOp | tuple[SampleOp, AdapterView]) -> dict[str, Answer]:
    """Admits all requests at once and steps until they have ended."""
    for request in requests:
        op, adapter = request if isinstance(request, tuple) else (request, None)
        sampler.admit(op, adapter)
    return drain(sampler)


def drain(sampler: Sampler, max_steps=1000) -> dict[str, Answer]:
    answers: dict[str, Answer] = defaultdict(Answer)
    while sampler.busy and max_steps:
        max_steps -= 1
        for event in sampler.step():
            answers[event.request_id].add(event)
    assert not sampler.busy, "the sampler is stuck"
    return answers


def one(sampler: Sampler, op: SampleOp, adapter: AdapterView | None = None) -> Answer:
    return run(sampler, (op, adapter) if adapter else op)[op.request_id]


def trainer_logprobs(rig: Rig, tokens, state: ModelState) -> Tensor:
    """log p of every token but the first, as training sees it."""
    op = train_pass(datum(tokens), forward_only=True)
    return rig.run((state, op))[0][0][:-1]


def base_state(rig: Rig) -> ModelState:
    """An adapter that changes nothing."""
    state = rig.state()
    state.master.zero_()
    state.refresh_weights()
    return state


def partial_of(tokens, logprobs) -> Partial:
    return Partial(np.asarray(tokens, "<i4").tobytes(), np.asarray(logprobs, "<f4").tobytes())


def floats(data: bytes | None) -> Tensor:
    assert data is not None
    return torch.from_numpy(np.frombuffer(data, "<f4").copy())


def top_ids(topk: TopK) -> np.ndarray:
    return np.frombuffer(topk.token_ids, "<i4").reshape(topk.length, topk.k)


def top_logprobs(topk: TopK) -> np.ndarray:
    return np.frombuffer(topk.logprobs, "<f4").reshape(topk.length, topk.k)


def free_all(sampler: Sampler) -> int:
    """Forgets every known prefix; gives how many pages are still held by somebody, which should be none."""
    for namespace in list(sampler.tree.roots):
        sampler.drop_revision(namespace.rpartition("#")[0])
    check_pages(sampler.pool)
    return sampler.pool.n_pages - sampler.pool.n_free


def folder_revision(revision_id: str, folder: Path) -> str:
    return f"{revision_id}={folder}"

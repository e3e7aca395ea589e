"""An engine's contract, kept by a sampler that is not ours: each sample is one stream, read by a thread of its own.

Revisions go there by their folders, when they are first asked for; the ones used least are taken back. It draws by its
own rules: a seed means something there, but not what it means here, and log-probabilities are those that it says.
"""

from __future__ import annotations

import queue
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import NoReturn

from loreloop.engine.contract import Pause, PromptEvent, SampleEvent, SampleFailed, TokenEvent
from loreloop.outside.server import Drawn, Lost, SamplerServer
from loreloop.protocol.errors import LoreloopError, ServerError, outcome_of
from loreloop.protocol.link import EngineInfo, Meters, ModelSnapshot
from loreloop.protocol.sampling import PromptReport, Revision, SampleOp, stop_reason
from loreloop.protocol.token_ids import n_ids, unpack_ids
from loreloop.protocol.training import (
    CreateModel,
    Failure,
    ForwardBackward,
    LoadState,
    OptimStep,
    PassResult,
    SavedResult,
    SaveExternal,
    SaveSampler,
    SaveState,
    StepResult,
    all_ids,
)

WAIT_SECONDS = 0.02  # a step waits so long for a token; messages are read in between
Key = tuple[str, int]  # a request, and which of its samples


class SamplerLost(BaseException):
    """The sampler is gone: this process ends, and what it had in hand goes to others. No error of any request."""


class OutsideEngine:
    """Samples alone. `max_resident` adapters are there at once, `max_running` samples of all requests together."""

    def __init__(self, server: SamplerServer, info: EngineInfo, *, max_resident: int, max_running: int) -> None:
        self._server, self._info = server, info
        self._max_resident, self._max_running = max_resident, max_running
        self._base = server.base_model()
        self._loaded: OrderedDict[str, None] = OrderedDict()  # revisions, those used last behind
        self._n_hits = self._n_evictions = 0
        self._running: dict[Key, SampleOp] = {}
        self._n_drawn: dict[Key, int] = {}
        # What threads have heard, and events that a step is to give out.
        self._heard: queue.SimpleQueue[tuple[Key, Drawn | Exception | None]] = queue.SimpleQueue()
        self._told: list[SampleEvent] = []

    @property
    def info(self) -> EngineInfo:
        """As the base model's folder has it."""
        return self._info

    @property
    def meters(self) -> Meters:
        """Of adapters; what else the sampler counts is its own matter."""
        return Meters(
            resident_revisions=len(self._loaded), revision_hits=self._n_hits, revision_evictions=self._n_evictions
        )

    def admit(self, op: SampleOp) -> bool:
        """False where too many samples run. A wrong request fails as an event of the next step."""
        if self._running and len(self._running) + op.num_samples > self._max_running:
            return False
        try:
            name = self._name_of(op.revision) if op.revision else self._base
        except Lost as lost:
            raise SamplerLost(str(lost)) from None
        except LoreloopError as error:
            self._told.append(SampleFailed(op.request_id, Failure(error.category, error.message)))
            return True
        self._told.append(PromptEvent(op.request_id, PromptReport(), 0))
        for index in range(op.num_samples):
            key = (op.request_id, index)
            self._running[key] = op
            self._n_drawn[key] = n_ids(op.resume[index].tokens) if op.resume else 0
            threading.Thread(target=self._read, args=(key, _body(op, index, name)), daemon=True).start()
        return True

    def sample_step(self) -> list[SampleEvent]:
        """What was drawn since the last step; waits a moment for it."""
        events, self._told = self._told, []
        try:
            heard = [self._heard.get(timeout=0 if events else WAIT_SECONDS)]
            while not self._heard.empty():
                heard.append(self._heard.get())
        except queue.Empty:
            return events
        for key, what in heard:
            if key in self._running:  # it may have ended meanwhile
                events.append(self._event(key, what))
        return events

    def finish_sample(self, request_id: str, sample_index: int) -> None:
        """Ends one sample; its thread notices with the next token."""
        self._running.pop((request_id, sample_index), None)
        self._n_drawn.pop((request_id, sample_index), None)

    def cancel_sample(self, request_id: str) -> None:
        """Ends all samples of a request, and forgets what was not told of them yet."""
        for key in [key for key in self._running if key[0] == request_id]:
            self.finish_sample(*key)
        self._told = [event for event in self._told if event.request_id != request_id]

    def drop_revision(self, revision_id: str) -> None:
        """Has the sampler forget an adapter."""
        if revision_id in self._loaded:
            del self._loaded[revision_id]
            self._unload(revision_id)

    @property
    def sampling(self) -> bool:
        """Whether anything runs, or is to be told."""
        return bool(self._running or self._told)

    def _read(self, key: Key, body: dict[str, object]) -> None:
        """In a thread of its own: one stream from its beginning to its end."""

        def read() -> None:
            for drawn in self._server.tokens(body, lambda: key not in self._running):
                self._heard.put((key, drawn))

        self._heard.put((key, outcome_of(read)))

    def _event(self, key: Key, what: Drawn | Exception | None) -> SampleEvent:
        request_id, index = key
        op = self._running[key]
        match what:
            case Drawn():
                self._n_drawn[key] += 1
                finished = stop_reason(op, what.token, self._n_drawn[key])
                if finished:
                    self.finish_sample(*key)
                return TokenEvent(
                    request_id=request_id,
                    sample_index=index,
                    token=what.token,
                    logprob=what.logprob,
                    finished=finished,
                )
            case LoreloopError():
                return self._failed(request_id, Failure(what.category, what.message))
            case None:
                n_drawn = self._n_drawn[key]
                return self._failed(
                    request_id, Failure("server", f"The sampler ended a sample after {n_drawn} tokens.")
                )
        raise SamplerLost(str(what))

    def _failed(self, request_id: str, failure: Failure) -> SampleFailed:
        self.cancel_sample(request_id)
        return SampleFailed(request_id, failure)

    def _name_of(self, revision: Revision) -> str:
        """Under its id there, loaded if it is not yet."""
        name = revision.revision_id
        if name in self._loaded:
            self._n_hits += 1
        else:
            in_use = {op.revision.revision_id for op in self._running.values() if op.revision}
            while len(self._loaded) >= self._max_resident and (cold := [r for r in self._loaded if r not in in_use]):
                del self._loaded[cold[0]]
                self._n_evictions += 1
                self._unload(cold[0])
            self._server.load(name, revision.folder)
        self._loaded[name] = None
        self._loaded.move_to_end(name)
        return name

    def _unload(self, revision_id: str) -> None:
        try:
            self._server.unload(revision_id)
        except Lost as lost:
            raise SamplerLost(str(lost)) from None

    # what an engine that trains can do besides; nobody asks a replica for it

    def create_model(self, op: CreateModel) -> None:
        """ServerError."""
        _refuse()

    def drop_model(self, model_id: str) -> None:
        """Nothing to forget."""

    def optim_step(self, op: OptimStep) -> StepResult:
        """ServerError."""
        _refuse()

    def save_state(self, op: SaveState) -> SavedResult:
        """ServerError."""
        _refuse()

    def save_sampler(self, op: SaveSampler) -> SavedResult:
        """ServerError."""
        _refuse()

    def save_external(self, op: SaveExternal) -> SavedResult:
        """ServerError."""
        _refuse()

    def load_state(self, op: LoadState) -> None:
        """ServerError."""
        _refuse()

    def train(self, passes: Sequence[ForwardBackward], pause: Pause) -> list[PassResult | Failure]:
        """ServerError."""
        _refuse()

    def snapshot(self, folder: str, plan_no: int) -> list[ModelSnapshot]:
        """There is no state."""
        return []

    def restore(self, snapshot: ModelSnapshot) -> None:
        """ServerError."""
        _refuse()


def _body(op: SampleOp, index: int, model: str) -> dict[str, object]:
    """One sample as a completion: ids in, ids out. A resumed one begins behind what its stream has shown."""
    params = op.params
    shown = op.resume[index].tokens if op.resume else None
    prompt = [*unpack_ids(all_ids(op.prompt)).tolist(), *(unpack_ids(shown).tolist() if shown else ())]
    return {
        "model": model,
        "prompt": prompt,
        "max_tokens": params.max_tokens - (n_ids(shown) if shown else 0),
        "temperature": params.temperature,
        "top_k": params.top_k,
        "top_p": params.top_p,
        "min_p": params.min_p,
        # The samples of a request are drawn apart, so they must not draw alike.
        "seed": (params.seed + index) % (1 << 31),
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        "repetition_penalty": params.repetition_penalty,
        "logit_bias": {str(token): bias for token, bias in params.logit_bias},
        "stop_token_ids": list(params.stop_tokens),
        # The list above is whole; what the sampler takes for ends of its own is not asked.
        "ignore_eos": True,
        "logprobs": 0,
        "return_token_ids": True,
    }


def _refuse() -> NoReturn:
    raise ServerError("This engine only samples.")

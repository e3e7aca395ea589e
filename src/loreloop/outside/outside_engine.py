"""An engine's contract, kept by a sampler that is not ours: each sample is one stream, read by a thread of its own.

Revisions go there by their folders, when they are first asked for; the ones used least are taken back. It draws by its
own rules: a seed means something there, but not what it means here, and log-probabilities are those that it says.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import queue
import secrets
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from loreloop.engine.contract import Pause, PromptEvent, SampleEvent, SampleFailed, TokenEvent, no_pause
from loreloop.outside.server import Drawn, Lost, NotLoaded, SamplerServer
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

LOG = logging.getLogger(__name__)
WAIT_SECONDS = 0.02  # a step waits so long for a token; messages are read in between
Key = tuple[str, int]  # a request, and which of its samples


class SamplerLost(BaseException):
    """The sampler is gone: this process ends, and what it had in hand goes to others. No error of any request."""


@dataclass
class _Running:
    """One sample; `model` is the name there of what it is drawn from."""

    key: Key
    op: SampleOp
    model: str
    n_drawn: int


class OutsideEngine:
    """Samples alone. `max_resident` adapters are there at once, `max_running` samples of all requests together. `owner`
    is a word that no other engine at that server has, and that this one has at each of its starts."""

    def __init__(
        self, server: SamplerServer, info: EngineInfo, *, owner: str, max_resident: int, max_running: int
    ) -> None:
        self._server, self._info = server, info
        self._max_resident, self._max_running = max_resident, max_running
        self._base = server.base_model().name
        self._loaded: OrderedDict[str, str] = OrderedDict()  # revisions by their names there, those used last behind
        self._n_hits = self._n_evictions = 0
        self._running: dict[Key, _Running] = {}
        # What threads have heard, and events that a step is to give out.
        self._heard: queue.SimpleQueue[tuple[_Running, Drawn | Failure | Exception | None]] = queue.SimpleQueue()
        self._told: list[SampleEvent] = []
        # What an earlier process has left there may be of weights that were saved anew since.
        ours = f"loreloop-{owner}-"
        for model in server.models():
            if model.name.startswith(ours):
                self._unload(model.name)
        self._prefix = f"{ours}{secrets.token_hex(4)}-"

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
            self._told.append(SampleFailed(op.request_id, self._alone(lost)))
            return True
        self._told.append(PromptEvent(op.request_id, PromptReport(), 0))
        for index in range(op.num_samples):
            key = (op.request_id, index)
            n_shown = n_ids(op.resume[index].tokens) if op.resume else 0
            running = self._running[key] = _Running(key, op, name, n_shown)
            threading.Thread(target=self._read, args=(running, _body(op, index, name)), daemon=True).start()
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
        for running, what in heard:
            if not self._is_over(running):  # it may have ended meanwhile
                events.append(self._event(running, what))
        return events

    def finish_sample(self, request_id: str, sample_index: int) -> None:
        """Ends one sample; its thread notices with the next token."""
        self._running.pop((request_id, sample_index), None)

    def cancel_sample(self, request_id: str) -> None:
        """Ends all samples of a request, and forgets what was not told of them yet."""
        for key in [key for key in self._running if key[0] == request_id]:
            self.finish_sample(*key)
        self._told = [event for event in self._told if event.request_id != request_id]

    def drop_revision(self, revision_id: str) -> None:
        """Has the sampler forget an adapter."""
        for name in [name for name, loaded in self._loaded.items() if loaded == revision_id]:
            del self._loaded[name]
            self._unload(name)

    @property
    def sampling(self) -> bool:
        """Whether anything runs, or is to be told."""
        return bool(self._running or self._told)

    def _is_over(self, running: _Running) -> bool:
        # Its request may be here again under the same id, which this one has no part in.
        return self._running.get(running.key) is not running

    def _read(self, running: _Running, body: dict[str, object]) -> None:
        """In a thread of its own: one stream from its beginning to its end."""

        def read() -> None:
            for drawn in self._server.tokens(body, lambda: self._is_over(running)):
                self._heard.put((running, drawn))

        outcome = outcome_of(read)
        if self._is_over(running):
            return  # ended meanwhile, and nobody asks any more
        if outcome is None or isinstance(outcome, LoreloopError):
            self._heard.put((running, outcome))
        elif self._server.answers():
            self._heard.put((running, outcome if isinstance(outcome, NotLoaded) else _failure(outcome)))
        else:
            self._heard.put((running, Lost(str(outcome))))

    def _event(self, running: _Running, what: Drawn | Failure | Exception | None) -> SampleEvent:
        request_id, index = running.key
        match what:
            case Drawn() if not 0 <= what.token < self._info.vocab_size:
                return self._failed(request_id, _failure(f"the sampler drew {what.token}, which is no token here"))
            case Drawn():
                running.n_drawn += 1
                finished = stop_reason(running.op, what.token, running.n_drawn)
                if finished:
                    self.finish_sample(request_id, index)
                return TokenEvent(
                    request_id=request_id,
                    sample_index=index,
                    token=what.token,
                    logprob=what.logprob,
                    finished=finished,
                )
            case LoreloopError():
                return self._failed(request_id, Failure(what.category, what.message))
            case Failure():
                return self._failed(request_id, what)
            case NotLoaded():
                self._loaded.pop(running.model, None)  # it was started anew; the next sample hands the adapter over
                return self._failed(request_id, _failure(what))
            case None:
                n_drawn = running.n_drawn
                return self._failed(request_id, _failure(f"the sampler ended a sample after {n_drawn} tokens"))
        raise SamplerLost(str(what))

    def _alone(self, lost: Lost) -> Failure:
        """What fails one request alone, if the server is there; otherwise this process ends."""
        if not self._server.answers():
            raise SamplerLost(str(lost)) from None
        return _failure(lost)

    def _failed(self, request_id: str, failure: Failure) -> SampleFailed:
        self.cancel_sample(request_id)
        return SampleFailed(request_id, failure)

    def _name_of(self, revision: Revision) -> str:
        """Its name there, loaded if it is not yet. Other weights have another name, also under the same path."""
        name = f"{self._prefix}{revision.revision_id}-{_stamp(Path(revision.folder))}"
        if name in self._loaded:
            self._n_hits += 1
        else:
            in_use = {running.model for running in self._running.values()}
            while len(self._loaded) >= self._max_resident and (cold := [r for r in self._loaded if r not in in_use]):
                del self._loaded[cold[0]]
                self._n_evictions += 1
                self._unload(cold[0])
            self._server.load(name, revision.folder)
        self._loaded[name] = revision.revision_id
        self._loaded.move_to_end(name)
        return name

    def _unload(self, name: str) -> None:
        try:
            self._server.unload(name)
        except Lost as lost:
            self._alone(lost)  # one that stays there takes room, and is asked for no more

    # what an engine that trains can do besides; nobody asks a replica for it

    def create_model(self, op: CreateModel, pause: Pause = no_pause) -> None:
        """ServerError."""
        _refuse()

    def drop_model(self, model_id: str) -> None:
        """Nothing to forget."""

    def optim_step(self, op: OptimStep, pause: Pause = no_pause) -> StepResult:
        """ServerError."""
        _refuse()

    def save_state(self, op: SaveState, pause: Pause = no_pause) -> SavedResult:
        """ServerError."""
        _refuse()

    def save_sampler(self, op: SaveSampler, pause: Pause = no_pause) -> SavedResult:
        """ServerError."""
        _refuse()

    def save_external(self, op: SaveExternal, pause: Pause = no_pause) -> SavedResult:
        """ServerError."""
        _refuse()

    def load_state(self, op: LoadState, pause: Pause = no_pause) -> None:
        """ServerError."""
        _refuse()

    def train(self, passes: Sequence[ForwardBackward], pause: Pause) -> list[PassResult | Failure]:
        """ServerError."""
        _refuse()

    def snapshot(self, folder: str, plan_no: int, pause: Pause = no_pause) -> list[ModelSnapshot]:
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
        "seed": seed_of(params.seed, index, shown or b""),
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


def seed_of(seed: int, index: int, shown: bytes) -> int:
    """The seed of one sample there. The samples of a request are drawn apart, and a resumed one anew: none may draw as
    another does, nor as a request whose seed is the next one."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {index} ".encode() + shown, digest_size=4).digest()) >> 1


def _stamp(folder: Path) -> str:
    """Of an adapter's files as they lie there; no checksum, since it is asked for with every sample."""
    found = hashlib.blake2b(digest_size=6)
    # What cannot be read here is told by the server that shall load it.
    with contextlib.suppress(OSError):
        for file in sorted(folder.iterdir()):
            status = file.stat()
            found.update(f"{file.name} {status.st_ino} {status.st_size} {status.st_mtime_ns}".encode())
    return found.hexdigest()


def _failure(why: Exception | str) -> Failure:
    """Of one sample, which another engine may be able to draw. What the server said of it is for the log alone."""
    LOG.warning("a sample could not be drawn: %s", why)
    return Failure("server", "The sampler outside could not draw this sample; send it again in a moment.", passing=True)


def _refuse() -> NoReturn:
    raise ServerError("This engine only samples.")

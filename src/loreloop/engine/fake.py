"""An engine of plain arithmetic, for tests of everything around an engine, ours and other people's.

It keeps the contract: state in files, training that pauses, failures per operation. A model is one number, a pass adds
to its gradient, a step moves it. With `mixes` a pass also feels how many passes share its batch, as packing does to
floating-point sums, so that a replay in another grouping is noticed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from loreloop.engine.contract import Pause, PromptEvent, SampleEvent, SampleFailed, TokenEvent, no_pause
from loreloop.engine.training.staging import staged
from loreloop.protocol.checksums import sum_of, sum_of_bytes
from loreloop.protocol.errors import BadRequest, NotFound, ServerError, reading_trouble
from loreloop.protocol.link import EngineInfo, Meters, ModelSnapshot
from loreloop.protocol.paths import file_name
from loreloop.protocol.sampling import PromptReport, SampleOp, stop_reason
from loreloop.protocol.syncing import sync_names, sync_path
from loreloop.protocol.tensors import tensor_of
from loreloop.protocol.token_ids import unpack_ids
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
)

VOCAB = 1000


@dataclass
class Model:
    """The one number that stands for an adapter, its gradient, and how many steps it has taken."""

    weight: float
    gradient: float = 0.0
    steps: int = 0


class FakeEngine:
    """`rooms` bounds the samples admitted at once; `layer_seconds` and `token_seconds` are slept per pause and step, by
    `sleep`."""

    def __init__(
        self,
        *,
        rooms: int = 8,
        mixes: bool = False,
        layer_seconds: float = 0.0,
        token_seconds: float = 0.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.rooms, self.mixes, self.sleep = rooms, mixes, sleep
        self.layer_seconds, self.token_seconds = layer_seconds, token_seconds
        self.models: dict[str, Model] = {}
        self.changed: set[str] = set()
        self.samples: dict[str, SampleOp] = {}
        self.drawn: dict[str, dict[int, list[int]]] = {}  # unfinished samples by request and index
        self.n_batches = 0
        self.most_running = 0
        self.admitted: list[str] = []

    @property
    def info(self) -> EngineInfo:
        """A small model's properties, with the end of a text at id 0."""
        return EngineInfo(
            base_model="fake",
            folder="",
            vocab_size=VOCAB,
            context_window=4096,
            eos_token_ids=(0,),
            max_lora_rank=64,
            n_threads=1,
        )

    @property
    def meters(self) -> Meters:
        """No meters at all, for nothing here is measured."""
        return Meters()

    # training

    def create_model(self, op: CreateModel, pause: Pause = no_pause) -> None:
        """Begins at the seed, or at a saved state. BadRequest for ranks above 64."""
        if op.lora.rank > 64:
            raise BadRequest(f"The rank {op.lora.rank} was asked for; it must lie between 1 and 64.")
        self._work(pause)
        state = json.loads((Path(op.load_folder) / "state.json").read_text()) if op.load_folder else None
        self.models[op.model_id] = Model(**state) if state else Model(float(op.lora.seed))
        self.changed.add(op.model_id)

    def drop_model(self, model_id: str) -> None:
        """Forgets the number; one that is not there is no error."""
        self.models.pop(model_id, None)
        self.changed.discard(model_id)

    def optim_step(self, op: OptimStep, pause: Pause = no_pause) -> StepResult:
        """Moves the number against its gradient. NotFound where the model is not live."""
        model = self._model(op.model_id)
        norm = abs(model.gradient)
        self._work(pause)
        model.weight -= op.adam.learning_rate * model.gradient
        model.gradient, model.steps = 0.0, model.steps + 1
        self.changed.add(op.model_id)
        return StepResult({"unclipped_grad_l2:mean": norm})

    def save_state(self, op: SaveState, pause: Pause = no_pause) -> SavedResult:
        """Writes the number, its gradient and its steps as JSON."""
        self._work(pause)
        return SavedResult(_write(Path(op.folder), self._model(op.model_id)))

    def save_sampler(self, op: SaveSampler, pause: Pause = no_pause) -> SavedResult:
        """Writes the same file as `save_state`, so that tests see what a revision was made of."""
        self._work(pause)
        return SavedResult(_write(Path(op.folder), self._model(op.model_id)))

    def save_external(self, op: SaveExternal, pause: Pause = no_pause) -> SavedResult:
        """Writes the same file as `save_state`, never encrypted."""
        self._work(pause)
        return SavedResult(_write(Path(op.folder), self._model(op.model_id)))

    def load_state(self, op: LoadState, pause: Pause = no_pause) -> None:
        """Takes the saved numbers over, whatever the model was before."""
        self._work(pause)
        self.models[op.model_id] = Model(**json.loads((Path(op.folder) / "state.json").read_text()))
        self.changed.add(op.model_id)

    def train(self, passes: Sequence[ForwardBackward], pause: Pause) -> list[PassResult | Failure]:
        """Pauses three times, then computes all passes; the loss named `broken` raises as a bug would."""
        for _ in range(3):
            self._work(pause)
        self.n_batches += 1
        # Those that are refused are no part of what is computed, as in a real engine.
        n_computed = sum(self._can_compute(op) for op in passes)
        return [self._pass(op, n_computed) for op in passes]

    def _work(self, pause: Pause) -> None:
        """What takes long, and so pauses."""
        self.sleep(self.layer_seconds)
        pause()

    def _can_compute(self, op: ForwardBackward) -> bool:
        return op.loss_fn == "cross_entropy" and op.model_id in self.models

    def _pass(self, op: ForwardBackward, n_passes: int) -> PassResult | Failure:
        if op.loss_fn == "broken":
            raise ZeroDivisionError("a bug of the engine")
        if not self._can_compute(op):
            return Failure("user", f"The loss {op.loss_fn!r} of {op.model_id} cannot be computed.")
        model = self.models[op.model_id]
        # Far below what a test of values would notice, and far above what two equal computations differ by.
        noise = n_passes * 1e-9 if self.mixes else 0.0
        targets = [datum.inputs["target_tokens"].numpy().astype(np.float64) for datum in op.data]
        outputs = [-(model.weight + tokens / VOCAB) - noise for tokens in targets]
        loss = -float(sum(output.sum() for output in outputs))
        if not op.forward_only:
            model.gradient += loss
            self.changed.add(op.model_id)
        return PassResult(tuple({"logprobs": tensor_of(o.astype(np.float32))} for o in outputs), {"loss:sum": loss})

    def snapshot(self, folder: str, plan_no: int, pause: Pause = no_pause) -> list[ModelSnapshot]:
        """Writes every model that changed since the last snapshot, and gives their files, which are on the disk."""
        taken = []
        for model_id in sorted(self.changed):
            self._work(pause)
            file = Path(folder) / f"{file_name(model_id)}.{plan_no}.json"
            file.write_text(json.dumps(asdict(self.models[model_id])))
            sync_path(file)
            taken.append(ModelSnapshot(model_id, plan_no, 0, str(file), sum_of(file).crc32))
        if taken:
            sync_names(Path(folder, "any"), 3)  # as many as may be new
        self.changed.clear()
        return taken

    def restore(self, snapshot: ModelSnapshot) -> None:
        """Reads one back. ServerError where it is gone or damaged, OutOfService where it cannot be read just now."""
        try:
            content = Path(snapshot.file).read_bytes()
        except OSError as error:
            if trouble := reading_trouble(error, Path(snapshot.file)):
                raise trouble from None
            raise ServerError(f"its snapshot {snapshot.file} cannot be read ({error})") from None
        if sum_of_bytes(content).crc32 != snapshot.crc32:
            raise ServerError(f"its snapshot {snapshot.file} is damaged")
        self.models[snapshot.model_id] = Model(**json.loads(content))

    def _model(self, model_id: str) -> Model:
        if model_id not in self.models:
            raise NotFound(f"The model {model_id} is not live.")
        return self.models[model_id]

    # sampling

    def admit(self, op: SampleOp) -> bool:
        """False where its samples do not fit into the rooms. NotFound where the revision's folder is gone."""
        if sum(len(indices) for indices in self.drawn.values()) + op.num_samples > self.rooms:
            return False
        if op.revision and not Path(op.revision.folder, "state.json").exists():
            raise NotFound(f"The revision {op.revision.revision_id} cannot be read.")
        self.samples[op.request_id] = op
        resumed = [unpack_ids(partial.tokens).tolist() for partial in op.resume]
        self.drawn[op.request_id] = dict(enumerate(resumed or [[] for _ in range(op.num_samples)]))
        self.admitted.append(op.request_id)
        self.most_running = max(self.most_running, sum(map(len, self.drawn.values())))
        return True

    def sample_step(self) -> list[SampleEvent]:
        """One token for every sample. A request with the seed 666 fails, as one with an unreadable revision does."""
        self.sleep(self.token_seconds)
        events: list[SampleEvent] = []
        for request_id, by_index in list(self.drawn.items()):
            op = self.samples[request_id]
            if op.params.seed == 666:
                del self.drawn[request_id]
                events.append(SampleFailed(request_id, Failure("server", "This request alone cannot go on.")))
                continue
            # Nothing drawn means that the prompt has just been computed; resumed samples have reported theirs before.
            if all(not tokens for tokens in by_index.values()):
                events.append(PromptEvent(request_id, PromptReport(), 0))
            for index, tokens in list(by_index.items()):
                tokens.append(self.draw(op, index, len(tokens)))
                reason = stop_reason(op, tokens[-1], len(tokens))
                events.append(
                    TokenEvent(
                        request_id=request_id,
                        sample_index=index,
                        token=tokens[-1],
                        logprob=-tokens[-1] / VOCAB,
                        finished=reason,
                    )
                )
                if reason:
                    self.finish_sample(request_id, index)
        return events

    def draw(self, op: SampleOp, index: int, position: int) -> int:
        """What a test of what is said may say otherwise."""
        return drawn_token(op, index, position)

    def finish_sample(self, request_id: str, sample_index: int) -> None:
        """Ends one sample, and its request with the last of them."""
        del self.drawn[request_id][sample_index]
        if not self.drawn[request_id]:
            self.cancel_sample(request_id)

    def cancel_sample(self, request_id: str) -> None:
        """Ends all samples of a request."""
        del self.drawn[request_id]

    def drop_revision(self, revision_id: str) -> None:
        """Does nothing, since nothing of a revision is kept."""
        pass

    @property
    def sampling(self) -> bool:
        """Whether any sample is unfinished."""
        return bool(self.drawn)


def drawn_token(op: SampleOp, index: int, position: int) -> int:
    """The draw of (seed, sample index, position): never 0, which ends a sequence."""
    return 1 + (op.params.seed * 7919 + index * 104729 + position * 1299709) % (VOCAB - 1)


def _write(folder: Path, model: Model) -> int:
    """A folder that appears whole and is on the disk, as one of a real engine; gives its size."""
    with staged(folder) as staging:
        return (staging / "state.json").write_text(json.dumps(asdict(model)))

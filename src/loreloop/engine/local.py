"""The engine of one base model on this machine: `engine.contract.Engine` out of the trainer, the bank and the sampler.

Owns the device memory. Knows nothing of queues and processes.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from loreloop.config import EngineConfig
from loreloop.engine.aside import Aside
from loreloop.engine.attention import Attention, FastAttention, FixedAttention
from loreloop.engine.contract import Constrain, Pause, SampleEvent, SampleFailed, no_pause
from loreloop.engine.encryption import encrypt_files
from loreloop.engine.head import Head
from loreloop.engine.images import ImageTable
from loreloop.engine.precision import chosen_device, chosen_precision
from loreloop.engine.sampling.paged_attention import page_bytes
from loreloop.engine.sampling.revisions import Revisions
from loreloop.engine.sampling.sampler import Sampler, SamplerLimits, refuse
from loreloop.engine.threads import ThreadKeeper
from loreloop.engine.training.checks import check_pass
from loreloop.engine.training.model_state import (
    AdapterBank,
    ModelState,
    read_checkpoint,
    write_checkpoint,
    write_sampler,
    written,
)
from loreloop.engine.training.optimizer import adam_step
from loreloop.engine.training.route_replay import check_routes
from loreloop.engine.training.staging import staged
from loreloop.engine.training.trainer import Trainer, TrainPass
from loreloop.formats.export import export_parts, export_peft_stream
from loreloop.formats.load import load_weights
from loreloop.formats.peft import WEIGHTS_FILE, read_lora_spec
from loreloop.formats.vision import load_vision
from loreloop.model.linear import FastProducts, Products, TiledProducts
from loreloop.model.lora import outline
from loreloop.model.spec import DecoderSpec
from loreloop.parallel.cut_decoder import decoder_of, holding
from loreloop.parallel.place import ALONE, Place
from loreloop.parallel.sequence import training_decoder
from loreloop.parallel.stages import stage_of
from loreloop.protocol.checksums import write_sums
from loreloop.protocol.errors import BadRequest, LoreloopError, Unavailable, UserError
from loreloop.protocol.link import EngineInfo, Meters, ModelSnapshot
from loreloop.protocol.sampling import SampleOp
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
    length_of,
)

MOST_SPREAD = 4


class LocalEngine:
    """Loads `folder` and is ready. `work_dir` takes the models that do not fit into memory; a `secret` that clients do
    not know keeps them from making images that are taken for others; `ends` are ids that end a text beside those that
    the configuration names."""

    def __init__(
        self,
        config: EngineConfig,
        base_model: str,
        folder: Path,
        work_dir: Path,
        grammars: Callable[[EngineInfo], Constrain] | None = None,
        *,
        secret: bytes = b"",
        ends: Sequence[int] = (),
        place: Place = ALONE,
    ) -> None:
        self.config, self.base_model, self.place = config, base_model, place
        self.threads, self.aside = _threads(config, place), Aside(alone=place.n_ranks == 1)
        device = chosen_device(config.device)
        precision = chosen_precision(config.precision, device)
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        # Deterministic products and attention go together: one without the other would not make rows independent.
        products: Products = TiledProducts() if config.deterministic else FastProducts(pack=config.pack_weights)
        attention: Attention = FixedAttention() if config.deterministic else FastAttention()
        quantize = config.quantize == "int4"
        whole, weights = load_weights(folder, dtype=dtype, device=device, quantize=quantize, held=holding(place))
        self.decoder = decoder_of(whole, weights, dtype, products, place)
        del weights
        vision = load_vision(folder, dtype=dtype, device=device)
        self.images = ImageTable(vision, device, config.image_cache_mib << 20, secret, place)
        spec, stage = self.decoder.spec, stage_of(whole, place)
        head = Head(self.decoder, fixed_rows=config.deterministic)
        limits = _limits(config, spec, dtype, place)
        self.bank = AdapterBank(whole, dtype, device, work_dir, config.resident_models, place, aside=self.aside)
        self.revisions = Revisions(whole, dtype, device, config.resident_revisions, place)
        self.trainer = Trainer(
            training_decoder(self.decoder, place),
            attention,
            head,
            config.train_tokens * _spread(spec),
            config.kept_tokens,
            images=self.images,
            replay_routes=config.replay_routes,
            stage=stage,
        )
        self._info = EngineInfo(
            base_model=base_model,
            folder=str(folder),
            vocab_size=whole.vocab_size,
            context_window=whole.context_window,
            eos_token_ids=tuple(i for i in dict.fromkeys((*whole.eos_token_ids, *ends)) if 0 <= i < whole.vocab_size),
            max_lora_rank=config.max_lora_rank,
            n_threads=self.threads.most,
            precision=precision,
            images=vision.rules if vision else None,
        )
        constrain = grammars(self._info) if grammars else refuse
        self.sampler = Sampler(self.decoder, attention, head, limits, constrain, self.images, stage=stage)
        self.failed: list[SampleEvent] = []
        self.has_loaded = False  # an adapter since the last step

    @property
    def info(self) -> EngineInfo:
        """As it was found when the model was loaded."""
        return self._info

    @property
    def meters(self) -> Meters:
        """Pages of the cache and traffic of revisions, read from counters that are kept anyway."""
        revisions, pool = self.revisions, self.sampler.pool
        return Meters(
            kv_pages=pool.n_pages,
            kv_pages_free=pool.n_free,
            resident_revisions=len(revisions.resident),
            revision_hits=revisions.n_hits,
            revision_evictions=revisions.n_evictions,
            cold_loads=revisions.cold_loads,
        )

    def create_model(self, op: CreateModel, pause: Pause = no_pause) -> None:
        """Makes a model, resident in the bank. BadRequest for a rank out of bounds, for nothing to train, and for a
        folder that cannot be read."""
        folder = Path(op.load_folder) if op.load_folder else None
        lora = op.lora if folder is None else self.place.agreed(lambda: read_lora_spec(folder))
        if not 1 <= lora.rank <= self.config.max_lora_rank:
            raise BadRequest(
                f"The rank {lora.rank} was asked for; it must lie between 1 and {self._info.max_lora_rank}."
            )
        if not (lora.train_attn or lora.train_mlp or lora.train_unembed):
            raise BadRequest("Nothing to train: set at least one of train_attn, train_mlp, train_unembed.")
        state = self.bank.create(op.model_id, lora, pause)
        with contextlib.ExitStack() as undo:
            # The model must exist before it can be filled, so a folder that cannot be read takes it away again.
            undo.callback(self.bank.drop, op.model_id)
            if op.load_folder:
                self._fill(state, op.load_folder, pause, optimizer=op.load_optimizer)
            undo.pop_all()
        self.bank.changed(op.model_id)

    def drop_model(self, model_id: str) -> None:
        """Forgets a model and its files in the work folder."""
        self.bank.drop(model_id)

    def optim_step(self, op: OptimStep, pause: Pause = no_pause) -> StepResult:
        """One AdamW step. BadRequest for settings that are not finite or out of range, or for such gradients."""
        _check_adam(op)
        state = self.bank.get(op.model_id, pause)
        self.bank.changed(op.model_id)
        return StepResult(adam_step(state, op.adam, pause))

    def save_state(self, op: SaveState, pause: Pause = no_pause) -> SavedResult:
        """Writes the fp32 master and both moments as a PEFT folder with its checksums."""
        state = self.bank.get(op.model_id, pause)
        return self.aside.done(lambda: write_checkpoint(Path(op.folder), state, self.base_model), pause)

    def save_sampler(self, op: SaveSampler, pause: Pause = no_pause) -> SavedResult:
        """Writes what sampling will use, and hands the same numbers over in memory."""
        state = self.bank.get(op.model_id, pause)
        weights, folder = state.publish(), Path(op.folder)
        write = partial(write_sampler, folder, state.share, weights.flat, self.base_model, durable=op.durable)
        # Written first: once a revision is known it must also be found after a restart.
        saved = self.aside.done(write, pause)
        self.revisions.put(op.revision_id, weights)
        return saved

    def save_external(self, op: SaveExternal, pause: Pause = no_pause) -> SavedResult:
        """Writes the fp32 master in peft's own arrangement. BadRequest names a recipient that is none."""
        state = self.bank.get(op.model_id, pause)
        share, layout = state.share, state.share.whole_layout
        whole = share.wholes(state.master, export_parts(layout))

        def write() -> SavedResult:
            with staged(Path(op.folder)) as staging:
                sums = export_peft_stream(staging, outline(layout, state.master.dtype), whole, self.base_model)
                n_bytes = sums[WEIGHTS_FILE].n_bytes
                if op.age_recipients:
                    sums = encrypt_files(staging, sums, op.age_recipients)
                sums_crc32 = write_sums(staging, sums)
            return SavedResult(n_bytes, sums_crc32)

        return self.aside.done(lambda: written(share, [whole], write, SavedResult), pause)

    def load_state(self, op: LoadState, pause: Pause = no_pause) -> None:
        """Fills a live model from a checkpoint. BadRequest, with the model unchanged, where shapes or files do not
        fit."""
        self._fill(self.bank.get(op.model_id, pause), op.folder, pause, optimizer=op.optimizer)
        self.bank.changed(op.model_id)

    def _fill(self, state: ModelState, folder: str, pause: Pause, *, optimizer: bool) -> None:
        self.aside.done(lambda: read_checkpoint(Path(folder), state, optimizer=optimizer), pause)

    def train(self, passes: Sequence[ForwardBackward], pause: Pause) -> list[PassResult | Failure]:
        """Checks every pass by itself, then runs those that are right as one batch."""
        results: list[PassResult | Failure | None] = [None] * len(passes)
        works: dict[int, TrainPass] = {}
        for index, op in enumerate(passes):
            try:
                sequences = check_pass(op, self._info.vocab_size, self._info.context_window, self.images)
                check_routes(op, self.decoder.spec.moe)
                works[index] = TrainPass(op=op, state=self.bank.get(op.model_id, pause), sequences=sequences)
            except UserError as error:
                results[index] = Failure(error.category, error.message)

        # Threads are adjusted where training pauses anyway; between two pauses the number must not change.
        def breathe() -> None:
            self.threads.adjust()
            pause()

        self.trainer.run(list(works.values()), breathe)
        for index, work in works.items():
            results[index] = work.result()
            if not work.op.forward_only:
                self.bank.changed(work.op.model_id)
        return [result for result in results if result is not None]

    def snapshot(self, folder: str, plan_no: int, pause: Pause = no_pause) -> list[ModelSnapshot]:
        """Writes the changed models into `folder`, with the plan's number in their names."""
        files = self.bank.snapshot(Path(folder), str(plan_no), pause)
        return [ModelSnapshot(name, plan_no, 0, str(file.path), file.crc32) for name, file in files.items()]

    def restore(self, snapshot: ModelSnapshot) -> None:
        """Takes a model in from a snapshot, as a file of the bank that is read when it is needed."""
        self.bank.restore(snapshot.model_id, Path(snapshot.file), snapshot.crc32)

    def admit(self, op: SampleOp) -> bool:
        """False only where all places are taken or another adapter was read in this step; a wrong request, or one
        whose adapter cannot be read, is admitted and fails as an event of the next step."""
        if not self.sampler.has_room():
            return False
        try:
            self._check_room(op)
            if op.revision and self.revisions.is_cold(op.revision):
                if self.has_loaded and self.sampling:
                    return False  # one a step, so that a crowd of cold adapters does not stall those that run
                self.has_loaded = True
            self.sampler.admit(op, self.revisions.get(op.revision) if op.revision else None)
        except LoreloopError as error:
            # Trouble with a file too: raised here, it would be told at another time than on processes that had none.
            failure = Failure(error.category, error.message, passing=isinstance(error, Unavailable))
            self.failed.append(SampleFailed(op.request_id, failure))
        return True

    def _check_room(self, op: SampleOp) -> None:
        n_tokens = length_of(op.prompt) + op.params.max_tokens
        n_room = self.sampler.limits.n_pages * self.sampler.limits.page_tokens
        if n_tokens > n_room:
            raise BadRequest(
                f"Prompt and max_tokens together are {n_tokens} tokens; this server's KV cache holds {n_room}. "
                "Ask for fewer, or start the server with a larger engine.kv_cache_mib."
            )

    def sample_step(self) -> list[SampleEvent]:
        """The failures that have gathered, then one step of the sampler."""
        self.threads.adjust()
        # A new step may read one cold adapter again.
        self.has_loaded = False
        failed, self.failed = self.failed, []
        return failed + self.sampler.step()

    def finish_sample(self, request_id: str, sample_index: int) -> None:
        """Ends one sample of a request early."""
        self.sampler.finish(request_id, sample_index)

    def cancel_sample(self, request_id: str) -> None:
        """Ends all samples of a request, and forgets failures of it that were not told yet."""
        self.sampler.finish(request_id)
        self.failed = [event for event in self.failed if event.request_id != request_id]

    def drop_revision(self, revision_id: str) -> None:
        """Forgets an adapter and the prefixes that were computed with it."""
        self.revisions.drop(revision_id)
        self.sampler.drop_revision(revision_id)

    @property
    def sampling(self) -> bool:
        """Whether a step has anything to give: samples, or failures that were not told yet."""
        return self.sampler.busy or bool(self.failed)


def _spread(spec: DecoderSpec) -> int:
    """How many times the rows of a micro-batch, so that each expert still gets enough of them for a product."""
    return max(1, min(MOST_SPREAD, spec.moe.n_experts // spec.moe.top_k)) if spec.moe else 1


def _limits(config: EngineConfig, spec: DecoderSpec, dtype: torch.dtype, place: Place) -> SamplerLimits:
    n_pages, gap_seconds = _n_pages(config, spec, dtype, place), gap_seconds_of(config, place)
    return SamplerLimits(n_pages, config.page_tokens, config.max_running_samples, config.prefill_tokens, gap_seconds)


def _n_pages(config: EngineConfig, spec: DecoderSpec, dtype: torch.dtype, place: Place) -> int:
    """How many pages the cache has, on every process."""
    # One page at least, so that a wrong setting shows in a refusal that names it and not in a crash here.
    n_pages = max(1, (config.kv_cache_mib << 20) // page_bytes(spec, config.page_tokens, dtype))
    # Stages hold unequal layers, and pages have the same numbers on all of them.
    return min(int(n_1) for n_1 in place.gathered(torch.tensor([n_pages]), [1] * place.n_ranks))


def gap_seconds_of(config: EngineConfig, place: Place) -> float:
    """What prompts beside rows that decode are bound by, 0 for nothing. Several processes would measure different
    times, and must compute the same rows."""
    return config.decode_gap_ms / 1000 if place.n_ranks == 1 else 0.0


def _threads(config: EngineConfig, place: Place) -> ThreadKeeper:
    # What several processes compute alike must come out alike, and a library adds up in other orders with other numbers
    # of threads.
    is_fixed = config.threads > 0 or config.deterministic or place.n_ranks > 1
    # Engines whose numbers stay cannot give way to one another, and threads that have no core wait for one another.
    n_beside = max(1, config.replicas) if is_fixed else 1
    # The cores that this process may use, which in a container are fewer than the machine has.
    n_cores = len(os.sched_getaffinity(0))
    return ThreadKeeper(config.threads or max(1, n_cores // (place.n_ranks * n_beside)), fixed=is_fixed)


def _check_adam(op: OptimStep) -> None:
    adam = op.adam
    values = (adam.learning_rate, adam.beta1, adam.beta2, adam.eps, adam.weight_decay, adam.grad_clip_norm)
    # One NaN here would reach every weight in the step and could not be taken back.
    if not all(math.isfinite(value) for value in values):
        raise BadRequest("The optimizer's settings must be finite numbers.")
    if not (0 <= adam.beta1 < 1 and 0 <= adam.beta2 < 1):
        raise BadRequest(f"beta1 {adam.beta1} and beta2 {adam.beta2} must lie in [0, 1).")
    if adam.learning_rate < 0 or adam.eps < 0 or adam.weight_decay < 0:
        raise BadRequest("learning_rate, eps and weight_decay must not be negative.")

"""Tinker routes that change a model: create, forward and backward, step, save, load."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loreloop.http.audited import note_read
from loreloop.http.bodies import answer, decode, read_json
from loreloop.http.services import INFER, TRAIN, caller, fresh_seed, now, services
from loreloop.http.tinker import provenance
from loreloop.http.tinker.sharing import readable
from loreloop.http.tinker.submission import Accepted, accept, active_session, address_in_protobuf, live_run
from loreloop.protocol import paths, rest
from loreloop.protocol.checksums import OPTIMIZER_FILE, check_all_files
from loreloop.protocol.codec import decode_pass
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.jobs import TUNED
from loreloop.protocol.paths import CheckpointKind, CheckpointPath, check_name, parse_path
from loreloop.protocol.training import (
    AdamParams,
    CreateModel,
    ForwardBackward,
    ImageChunk,
    LoadState,
    LoraSpec,
    OptimStep,
    SaveSampler,
    SaveState,
)
from loreloop.store import checkpoints, journal, runs
from loreloop.store.rows import AddCheckpoint, AddSampler, CheckpointRow, KeyRow, RunRow, SamplerRow


async def create_model(request: Request) -> Response:
    """Accepts the creation of a model with a fresh adapter; it is operation 0 of a new run."""

    async def build(key: KeyRow, raw: bytes) -> Accepted:
        body = decode(raw, rest.CreateModelBody)
        lora = body.lora_config
        seed = lora.seed if lora.seed is not None else fresh_seed()
        spec = LoraSpec(
            rank=lora.rank,
            # A client's seed may be negative or huge; its lowest 63 bits are one that every generator takes.
            seed=seed & (1 << 63) - 1,
            train_attn=lora.train_attn,
            train_mlp=lora.train_mlp,
            train_unembed=lora.train_unembed,
            experts=services(request).config.engine.lora_experts,
        )
        info = await services(request).dispatcher.info(services(request).names.base(body.base_model))
        check_lora(spec, body.optimizer_config, info.max_lora_rank)
        model_id = paths.model_id(body.session_id, body.model_seq_id)
        await begin(request, key, NewRun(model_id, body.session_id, body.base_model, spec, body.user_metadata))
        op = CreateModel(model_id=model_id, seq_id=0, request_id=paths.request_id(model_id, 0), lora=spec)
        return Accepted(op, reply={"model_id": model_id})

    return await accept(request, build)


def check_lora(spec: LoraSpec, optimizer: rest.OptimizerConfig, max_rank: int) -> None:
    """BadRequest where the rank is out of range, nothing would be trained, or the optimizer is not AdamW."""
    if not 1 <= spec.rank <= max_rank:
        raise BadRequest(f"The rank {spec.rank} was asked for; this server takes 1 to {max_rank}.")
    if not (spec.train_attn or spec.train_mlp or spec.train_unembed):
        raise BadRequest("Nothing to train: set at least one of train_attn, train_mlp, train_unembed.")
    if optimizer.type != "adamw":
        raise BadRequest(f"The optimizer {optimizer.type!r} is not served; use adamw.")


@dataclass(frozen=True)
class NewRun:
    """What a request says of the run that it begins."""

    model_id: str
    session_id: str
    base_model: str
    lora: LoraSpec
    user_metadata: dict[str, object] | None


def check_may_begin(request: Request, key: KeyRow, session_id: str, model_id: str) -> None:
    """NotFound or BadRequest where the key may begin no such run; to be asked before anything is written for it."""
    active_session(request, key, session_id)
    served = services(request)
    known = served.store.read(journal.is_known, paths.request_id(model_id, 0))
    # A repeated request must find its own run even when the key has reached its limit since.
    if not known and served.store.read(runs.n_live, key.id) >= served.config.limits.models_per_key:
        raise BadRequest(f"This key has {served.config.limits.models_per_key} live models; finish some sessions first.")


async def begin(request: Request, key: KeyRow, new: NewRun) -> None:
    """Writes the run's row; a repeated request finds it there."""
    check_may_begin(request, key, new.session_id, new.model_id)
    served = services(request)
    row = RunRow(
        id=new.model_id,
        session_id=new.session_id,
        key_id=key.id,
        base_model=new.base_model,
        lora=new.lora,
        created=now(),
        last_request=now(),
        user_metadata=new.user_metadata,
        live=True,
    )
    await served.store.write(runs.create, row)
    # In a session that goes on, a run is neither live nor lost where it is the place of a copy.
    there = served.store.read(runs.get, key.id, new.model_id)
    if not there.live and there.lost is None:
        raise BadRequest(f"{new.model_id} is the place of a copy, which cannot be trained; name another model_seq_id.")


async def forward_backward(request: Request) -> Response:
    """Accepts a pass over data, with images checked and spans of samples resolved."""

    async def build(key: KeyRow, raw: bytes) -> Accepted:
        decoded = decode_pass(raw)
        op = decoded.op
        # Place 0 is that of create_model.
        if op.seq_id < 1:
            raise BadRequest(f"The sequence id {op.seq_id} cannot be; a model's passes count from 1.")
        run = live_run(request, key, op.model_id)
        # Images come first: spans tile the input in tokens, and only a checked image knows how many it takes.
        decoded = msgspec.structs.replace(decoded, op=await with_images(request, run, op))
        data = await provenance.with_sampled_spans(request, run.session_id, decoded, run.base_model)
        request_id = paths.request_id(op.model_id, op.seq_id)
        return Accepted(msgspec.structs.replace(op, request_id=request_id, data=data))

    return await accept(request, build, address_in_protobuf)


async def create_custom_loss(request: Request) -> Response:
    """Always refused: a loss of the client's own is computed by the client (`forward_backward_custom`)."""
    caller(request, TRAIN)
    raise BadRequest(
        "Custom losses are not enabled on this server; forward_backward_custom computes them on the client, or take "
        "a loss that docs/training.md names."
    )


async def with_images(request: Request, run: RunRow, op: ForwardBackward) -> ForwardBackward:
    """The pass with its images checked; the engine judges the rest."""
    if not any(isinstance(chunk, ImageChunk) for datum in op.data for chunk in datum.chunks):
        return op
    served = services(request)
    info = await served.dispatcher.info(served.names.base(run.base_model))
    return msgspec.structs.replace(op, data=await served.pictures.in_data(op.data, info))


async def optim_step(request: Request) -> Response:
    """Accepts a step of the optimizer over the gradients that have gathered."""

    async def build(key: KeyRow, raw: bytes) -> Accepted:
        body = decode(raw, rest.OptimStepBody)
        live_run(request, key, body.model_id)
        if body.optimizer_params is not None:
            raise BadRequest(f"The optimizer {body.optimizer_params.get('type')!r} is not served; send adam_params.")
        adam = body.adam_params or AdamParams()
        return Accepted(OptimStep(body.model_id, body.seq_id, paths.request_id(body.model_id, body.seq_id), adam))

    return await accept(request, build)


async def save_weights(request: Request) -> Response:
    """Accepts the saving of a training checkpoint: weights and the optimizer's state."""

    async def build(key: KeyRow, raw: bytes) -> Accepted:
        body = decode(raw, rest.SaveWeightsBody)
        run = live_run(request, key, body.model_id)
        path = CheckpointPath(run.id, CheckpointKind.TRAINING, check_name(body.path))
        request_id = paths.request_id(run.id, body.seq_id)
        # The name is checked before the operation is journaled, since afterwards it could only fail.
        if not body.overwrite:
            check_free(request, path, request_id)
        row = new_checkpoint(request, key, path, body.user_metadata)
        op = SaveState(run.id, body.seq_id, request_id, row.folder)
        return Accepted(op, (AddCheckpoint(row, body.ttl_seconds),), {"path": str(path)})

    return await accept(request, build)


async def save_weights_for_sampler(request: Request) -> Response:
    """Accepts the saving of weights to sample from: under a name, or for as long as the session lives."""

    async def build(key: KeyRow, raw: bytes) -> Accepted:
        body = decode(raw, rest.SaveForSamplerBody)
        run = live_run(request, key, body.model_id)
        return named_sampler(request, key, run, body) if body.path else ephemeral_sampler(request, key, run, body)

    return await accept(request, build)


def named_sampler(request: Request, key: KeyRow, run: RunRow, body: rest.SaveForSamplerBody) -> Accepted:
    """The operation that saves weights to sample from under a name that stays."""
    path = CheckpointPath(run.id, CheckpointKind.SAMPLER, check_name(body.path or ""))
    request_id = paths.request_id(run.id, body.seq_id)
    check_free(request, path, request_id)
    row = new_checkpoint(request, key, path, body.user_metadata)
    op = SaveSampler(
        model_id=run.id, seq_id=body.seq_id, request_id=request_id, folder=row.folder, revision_id=str(path)
    )
    return Accepted(op, (AddCheckpoint(row, body.ttl_seconds),), {"path": str(path)})


def ephemeral_sampler(request: Request, key: KeyRow, run: RunRow, body: rest.SaveForSamplerBody) -> Accepted:
    """The operation that makes weights available to one sampler of this session, without a checkpoint."""
    if body.sampling_session_seq_id is None:
        raise BadRequest(
            "Give the sampler a name (path), or a sampling_session_seq_id for one that lives as long as you."
        )
    if body.kind not in ("snapshot", "inflight"):
        raise BadRequest(f"The kind {body.kind!r} is unknown; use snapshot or inflight.")
    sampler_id = paths.sampling_session_id(run.session_id, body.sampling_session_seq_id)
    folder = str(services(request).dispatcher.files.revision(sampler_id))
    row = SamplerRow(
        id=sampler_id,
        session_id=run.session_id,
        key_id=key.id,
        base_model=run.base_model,
        run_id=run.id,
        inflight=body.kind == "inflight",
        revision_id=sampler_id,
        folder=folder,
    )
    request_id = paths.request_id(run.id, body.seq_id)
    # It need not be durable: an adapter that lives no longer than its session may be lost when the power fails.
    op = SaveSampler(run.id, body.seq_id, request_id=request_id, folder=folder, revision_id=sampler_id, durable=False)
    return Accepted(op, (AddSampler(row),), {"sampling_session_id": sampler_id})


def check_free(request: Request, path: CheckpointPath, request_id: str) -> None:
    """A name is free, unless it is this very request that took it, sent once more."""
    store = services(request).store
    if not store.read(journal.is_known, request_id):
        # A name may be taken in two ways: by a checkpoint that is there, and by an operation that is still to write
        # one.
        store.read(checkpoints.check_free, path)
        if store.read(journal.is_promised, {"path": str(path)}):
            raise BadRequest(f"{path} is being saved by an earlier request; choose another name.")


def new_checkpoint(
    request: Request, key: KeyRow, path: CheckpointPath, user_metadata: dict[str, object] | None
) -> CheckpointRow:
    """The row of a checkpoint that an operation will write; its size is known only afterwards."""
    folder = str(services(request).dispatcher.files.checkpoint(path))
    return CheckpointRow(
        run_id=path.run_id,
        kind=path.kind,
        name=path.name,
        key_id=key.id,
        folder=folder,
        created=now(),
        size_bytes=0,
        expires=None,
        user_metadata=user_metadata,
    )


async def load_weights(request: Request) -> Response:
    """Accepts the loading of a checkpoint, into a live model or into a new one."""

    async def build(key: KeyRow, raw: bytes) -> Accepted:
        body = decode(raw, rest.LoadWeightsBody)
        body = msgspec.structs.replace(body, path=state_path(request, key, body.path))
        if body.model_id is not None and body.seq_id is not None:
            run = live_run(request, key, body.model_id)
            request_id = paths.request_id(run.id, body.seq_id)
            folder = await pinned(request, key, body, request_id)
            op = LoadState(run.id, body.seq_id, request_id, folder, body.optimizer)
            return Accepted(op, reply={"path": body.path, "model_id": run.id})
        if body.session_id is None or body.model_seq_id is None:
            raise BadRequest("Name a live model (model_id, seq_id), or a new one (session_id, model_seq_id).")
        return await create_from(request, key, body, paths.model_id(body.session_id, body.model_seq_id))

    return await accept(request, build)


def state_path(request: Request, key: KeyRow, name: str) -> str:
    """The tinker:// path that is meant: itself, or for a fine-tuned model's name the state which that begins from."""
    served = services(request)
    return served.names.beginning(served.store, key, name).state_path or name if name.startswith(TUNED) else name


async def create_from(request: Request, key: KeyRow, body: rest.LoadWeightsBody, model_id: str) -> Accepted:
    """A new run that begins at a checkpoint; it takes the place of create_model, sequence id 0."""
    if body.optimizer_config is not None and body.optimizer_config.type != "adamw":
        raise BadRequest(f"The optimizer {body.optimizer_config.type!r} is not served; use adamw.")
    request_id = paths.request_id(model_id, 0)
    # First of all, since the pin is named after a session that another key may own.
    check_may_begin(request, key, body.session_id or "", model_id)
    source, base_model = source_of(request, key, body)
    # Before the run's row, which would count as a live model were the files gone.
    folder = await pinned(request, key, body, request_id)
    new = NewRun(model_id, body.session_id or "", base_model, source.lora, body.user_metadata)
    await begin(request, key, new)
    op = CreateModel(
        model_id=model_id,
        seq_id=0,
        request_id=request_id,
        lora=source.lora,
        load_folder=folder,
        load_optimizer=body.optimizer,
    )
    return Accepted(op, reply={"path": body.path, "model_id": model_id})


def source_of(request: Request, key: KeyRow, body: rest.LoadWeightsBody) -> tuple[RunRow, str]:
    """The run of a checkpoint that the key may read, and the name of the base that a new run on it shall have.
    BadRequest where that is another base."""
    path, names = parse_path(body.path), services(request).names
    readable(request, key, path, body.weights_access_token)
    source = services(request).store.read(runs.of_anyone, path.run_id)
    base_model = body.base_model or source.base_model
    # The names may differ, one being an alias; what counts is that both mean the same base.
    if names.base(base_model) != names.base(source.base_model):
        raise BadRequest(f"{body.path} was trained on {source.base_model!r}, not on {base_model!r}.")
    return source, base_model


async def pinned(request: Request, key: KeyRow, body: rest.LoadWeightsBody, request_id: str) -> str:
    """The checkpoint's folder, kept while the operation may be replayed. Gone where it is not what was saved. Only for
    an id of the key's own, since the pin is named by it."""
    path = parse_path(body.path)
    # Weights to sample from are the same numbers, and whoever wants no optimizer's state misses nothing.
    if path.kind is not CheckpointKind.TRAINING and body.optimizer:
        raise BadRequest(
            f"{body.path} holds no optimizer's state; load it without, or a tinker://<run>/weights/<name> checkpoint."
        )
    served = services(request)
    row = readable(request, key, path, body.weights_access_token)
    folder = checkpoints.folder_of(row)
    # Without the optimizer's state being wanted, damage to its file does no harm.
    await asyncio.to_thread(check_all_files, folder, (OPTIMIZER_FILE,) if not body.optimizer else ())
    await note_read(request, key, row, "training")
    # The pin keeps the files though the checkpoint may be deleted meanwhile, because a replay after a crash loads them
    # again.
    is_new = not served.store.read(journal.is_known, request_id)
    with checkpoints.linking():
        return str(await asyncio.to_thread(served.dispatcher.files.pin, folder, request_id, is_new=is_new))


async def get_info(request: Request) -> Response:
    """What a client must know of a model in training: its base, its rank, where its tokenizer is found."""
    key, body = caller(request, INFER), await read_json(request, rest.ModelId)
    served = services(request)
    run = served.store.read(runs.get, key.id, body.model_id)
    tokenizer_id = served.names.repository(run.base_model)
    return answer(
        {
            "type": "get_info",
            "model_id": run.id,
            "model_data": {"arch": "decoder", "model_name": run.base_model, "tokenizer_id": tokenizer_id},
            "optimizer_config": {"type": "adamw"},
            "is_lora": True,
            "lora_rank": run.lora.rank,
            "model_name": run.base_model,
        }
    )


ROUTES = [
    Route("/create_model", create_model, methods=["POST"]),
    Route("/forward_backward", forward_backward, methods=["POST"]),
    Route("/create_custom_loss", create_custom_loss, methods=["POST"]),
    Route("/optim_step", optim_step, methods=["POST"]),
    Route("/save_weights", save_weights, methods=["POST"]),
    Route("/save_weights_for_sampler", save_weights_for_sampler, methods=["POST"]),
    Route("/load_weights", load_weights, methods=["POST"]),
    Route("/get_info", get_info, methods=["POST"]),
]

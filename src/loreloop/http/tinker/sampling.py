"""Tinker routes that sample: sessions of a sampler, and samples."""

from __future__ import annotations

from pathlib import Path

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loreloop.host.tickets import Recording
from loreloop.http.audited import note_read
from loreloop.http.bodies import answer, read_json
from loreloop.http.services import INFER, Services, caller, fresh_seed, now, secret_of, services
from loreloop.http.tinker.submission import active_session
from loreloop.protocol import paths
from loreloop.protocol.checks import check_params, check_prompt, check_scores, check_targets
from loreloop.protocol.errors import BadRequest, FilesGone
from loreloop.protocol.link import EngineInfo
from loreloop.protocol.rest import CreateSamplingSession, SampleBody, SamplingSessionId, WireSamplingParams
from loreloop.protocol.sampling import Revision, SampleOp
from loreloop.protocol.training import Chunk, length_of
from loreloop.store import samplers
from loreloop.store.rows import SamplerRow
from loreloop.text.grammars.sandbox import Rules


async def create_sampling_session(request: Request) -> Response:
    """Opens a sampler: a name for weights, from which `asample` then draws. The weights are fixed here, for all its
    samples."""
    key, served = caller(request, INFER), services(request)
    body = await read_json(request, CreateSamplingSession)
    active_session(request, key, body.session_id)
    if (body.model_path or body.base_model) is None:
        raise BadRequest("Name a base_model or a model_path to sample from.")
    target = served.names.target(served.store, key, body.model_path or body.base_model or "")
    if target.checkpoint is not None:
        await note_read(request, key, target.checkpoint, "sampling")
    sampler_id = paths.sampling_session_id(body.session_id, body.sampling_session_seq_id)
    revision = target.revision
    row = SamplerRow(
        id=sampler_id,
        session_id=body.session_id,
        key_id=key.id,
        base_model=target.name,
        model_path=body.model_path,
        revision_id=revision.revision_id if revision else None,
        folder=revision.folder if revision else None,
    )
    await served.store.write(samplers.create, row, now())
    return answer({"sampling_session_id": sampler_id})


async def join_sampling_session(request: Request) -> Response:
    """The number of one more copy of a sampler's client, by which its sequence ids keep apart from the others'."""
    key, body = caller(request, INFER), await read_json(request, SamplingSessionId)
    number = await services(request).store.write(samplers.join, key.id, body.sampling_session_id)
    return answer({"client_counter": number, "type": "join_sampling_session"})


async def get_sampler(request: Request) -> Response:
    """The SDK takes the base's name for that of its tokenizer, so one that is a path is told by its name at `/hf`."""
    key, served = caller(request, INFER), services(request)
    row = served.store.read(samplers.get, key.id, request.path_params["sampler_id"])
    path = {"model_path": row.model_path} if row.model_path else {}
    name = served.names.repository(row.base_model) if row.base_model.count("/") > 1 else row.base_model
    return answer({"sampler_id": row.id, "base_model": name, **path})


async def asample(request: Request) -> Response:
    """Hands a sample to the engine and answers at once with its request id, for which the client polls."""
    key, served = caller(request, INFER), services(request)
    body = await read_json(request, SampleBody)
    sampler = served.store.read(samplers.get, key.id, body.sampling_session_id)
    # A sampler ends with its session; samples of an ended one would never be cleaned up.
    active_session(request, key, sampler.session_id)
    base_model = served.names.base(sampler.base_model)
    info = await served.dispatcher.info(base_model)
    prompt = await served.pictures.in_prompt(check_prompt(body.prompt, info), info)
    op = await sample_op(served, sampler, key.id, of_job(request, body), prompt, info)
    sequence_ids = [f"{op.request_id}:{index}" for index in range(op.num_samples)]
    # Only where the client will refer to its samples in training are they kept, since routes and tokens take room.
    recording = Recording(sampler.session_id, tuple(sequence_ids)) if body.record_stability_info else None
    served.dispatcher.sample(msgspec.structs.replace(op, routes=recording is not None), base_model, recording)
    return answer({"request_id": op.request_id, "sample_sequence_ids": sequence_ids})


def of_job(request: Request, body: SampleBody) -> SampleBody:
    """The request with the form of answers that its fine-tuning job asks for, which the SDK has no words for. What only
    asks for log-probabilities of a prompt stays as it is."""
    schema = services(request).desk.answer_schema(secret_of(request))
    if schema is None or body.prompt_logprobs:
        return body
    params = msgspec.structs.replace(body.sampling_params, json_schema=schema)
    return msgspec.structs.replace(body, sampling_params=params)


async def sample_op(
    served: Services, sampler: SamplerRow, owner: str, body: SampleBody, prompt: tuple[Chunk, ...], info: EngineInfo
) -> SampleOp:
    """The checked operation of a request with its checked prompt."""
    limit = served.config.limits.samples_per_request
    # The samples of one request run together, and each needs pages of the cache.
    if body.num_samples > limit:
        raise BadRequest(f"num_samples is {body.num_samples}; at most {limit} are drawn for one request.")
    n_prompt = length_of(prompt)
    scores = check_scores(body, n_prompt)
    check_targets(scores, info)
    # Looked at here, because in the engine a missing folder would look like a fault of the server.
    if sampler.folder is not None and not Path(sampler.folder).is_dir():
        raise FilesGone(
            f"The files of {sampler.revision_id} are gone: there is no folder {sampler.folder}. Save them anew."
        )
    has_revision = sampler.revision_id is not None and sampler.folder is not None
    return SampleOp(
        request_id=paths.request_id(sampler.id, body.seq_id),
        owner=owner,
        revision=Revision(sampler.revision_id or "", sampler.folder or "") if has_revision else None,
        prompt=prompt,
        num_samples=body.num_samples,
        params=check_params(await _with_grammar(served, body.sampling_params, info), n_prompt, info, fresh_seed()),
        scores=scores,
        topk_sample_logprobs=body.topk_sample_logprobs,
    )


async def _with_grammar(served: Services, wire: WireSamplingParams, info: EngineInfo) -> WireSamplingParams:
    grammar = await served.sandbox.grammar_of(Rules(wire.grammar, wire.json_schema, wire.regex), info)
    return msgspec.structs.replace(wire, grammar=grammar)


ROUTES = [
    Route("/create_sampling_session", create_sampling_session, methods=["POST"]),
    Route("/join_sampling_session", join_sampling_session, methods=["POST"]),
    Route("/samplers/{sampler_id}", get_sampler, methods=["GET"]),
    Route("/asample", asample, methods=["POST"]),
]

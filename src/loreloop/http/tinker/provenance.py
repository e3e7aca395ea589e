"""Provenance spans of a training datum: checked against what was sampled, turned into sampled positions.

Spans tile a field exactly, in order, and name sequences of the same session. A model input's token p+1 is the target
at position p, so a span over the targets tells which of them a sampler drew.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from starlette.requests import Request

from loreloop.http.services import now, services
from loreloop.http.tinker.expert_routes import routes_of
from loreloop.protocol.codec import DatumSpans, DecodedPass
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.token_ids import n_ids
from loreloop.protocol.training import Datum, Span, length_of
from loreloop.store import spool
from loreloop.store.rows import SequenceRecord


async def with_sampled_spans(
    request: Request, session_id: str, decoded: DecodedPass, base_model: str
) -> tuple[Datum, ...]:
    """The data with `sampled_spans` and `routes` filled in where spans came along; their records' time starts anew."""
    used = {span.sequence_id for spans in decoded.spans for span in (*spans.model_input, *spans.loss_inputs)}
    if not used:
        return decoded.op.data
    served = services(request)
    records = {
        # Reading by session keeps one session's spans from naming another's samples.
        sequence_id: served.store.read(spool.get, served.store.segments, session_id, sequence_id, now())
        for sequence_id in used
    }
    lengths = {sequence_id: _lengths(record) for sequence_id, record in records.items()}
    data = tuple(
        msgspec.structs.replace(
            _checked(f"Datum {index}", datum, spans, lengths),
            routes=routes_of(spans.model_input, records, served.names.base(base_model)),
        )
        for index, (datum, spans) in enumerate(zip(decoded.op.data, decoded.spans, strict=True))
    )
    expires = now() + served.config.session.spool_ttl_seconds
    # Whoever trains on a record will likely train on it again, so it may stay as long as a new one.
    await served.store.write(spool.renew, sorted(used), expires)
    return data


def _lengths(record: SequenceRecord) -> dict[bool, int]:
    """How many tokens the output (True) and the prompt (False) of a sequence have."""
    return {False: n_ids(record.prompt), True: n_ids(record.tokens)}


def _checked(where: str, datum: Datum, spans: DatumSpans, lengths: dict[str, dict[bool, int]]) -> Datum:
    if not spans.model_input and not spans.loss_inputs:
        return datum
    n_tokens = length_of(datum.chunks)
    _check_tiling(f"{where}, model_input_spans", spans.model_input, n_tokens, lengths)
    _check_tiling(f"{where}, loss_fn_input_spans", spans.loss_inputs, n_tokens, lengths)
    sampled: list[tuple[int, int]] = []
    position = 0
    for span in spans.loss_inputs:
        if span.sampled:
            sampled.append((position, position + span.length))
        position += span.length
    return msgspec.structs.replace(datum, sampled_spans=tuple(sampled))


def _check_tiling(where: str, spans: Sequence[Span], n_tokens: int, lengths: dict[str, dict[bool, int]]) -> None:
    for span in spans:
        available = lengths[span.sequence_id][span.sampled]
        if span.offset < 0 or span.length < 0 or span.offset + span.length > available:
            part = "output" if span.sampled else "prompt"
            raise BadRequest(
                f"{where}: {span.length} positions from {span.offset} of the {part} of {span.sequence_id!r}, "
                f"which has {available}."
            )
    covered = sum(span.length for span in spans)
    # With every position covered once and in order, a position in the spans is a position in the field.
    if covered != n_tokens:
        raise BadRequest(f"{where} cover {covered} positions of {n_tokens}; they must tile the field exactly.")

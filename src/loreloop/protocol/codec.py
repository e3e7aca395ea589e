"""Protobuf bodies of the wire ↔ our values: passes on their way in, results on their way out.

What cannot be decoded is a BadRequest that names the place. Knows nothing of what the numbers mean to a model.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from google.protobuf.message import DecodeError

from loreloop.protocol import wire_pb2 as wire
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.sampling import SampleResult, TopK
from loreloop.protocol.tensors import DType, Tensor, tensor_of
from loreloop.protocol.token_ids import sent_ids
from loreloop.protocol.training import Chunk, Datum, ForwardBackward, ImageChunk, PassResult, Span, TextChunk

DTYPES: dict[int, DType] = {wire.DTYPE_FLOAT32: "float32", wire.DTYPE_INT64: "int64", wire.DTYPE_INT32: "int32"}
WIRE_DTYPES: dict[DType, wire.DType] = {
    "float32": wire.DTYPE_FLOAT32,
    "int64": wire.DTYPE_INT64,
    "int32": wire.DTYPE_INT32,
}
MAX_DENSE_ELEMENTS = 1 << 26  # of a body together: a sparse tensor is a few bytes that may claim to be anything
STOP_REASONS = {"stop": wire.STOP_REASON_STOP, "length": wire.STOP_REASON_LENGTH}


class DatumSpans(msgspec.Struct, frozen=True):
    """Where the input and the loss inputs of a datum came from; empty where nothing was said."""

    model_input: tuple[Span, ...]
    loss_inputs: tuple[Span, ...]


class DecodedPass(msgspec.Struct, frozen=True):
    """A pass as the client sent it; `spans` has one entry for each datum of `op`."""

    op: ForwardBackward
    spans: tuple[DatumSpans, ...]


def decode_pass(body: bytes) -> DecodedPass:
    """A ForwardBackwardRequest. The request id is left empty for the caller."""
    request = wire.ForwardBackwardRequest()
    try:
        request.ParseFromString(body)
    except DecodeError:
        raise BadRequest("The body is not a ForwardBackwardRequest: its protobuf is truncated or damaged.") from None
    _check_dense_size(request)
    # Checked above for the whole body at once: many tensors, each within the bound, could still exhaust the memory
    # together.
    data = tuple(_datum(f"Datum {index}", datum) for index, datum in enumerate(request.data))
    if request.loss_fn == "cross_entropy":
        _check_weighted(request)
    op = ForwardBackward(
        model_id=request.model_id,
        seq_id=request.seq_id,
        request_id="",
        data=data,
        loss_fn=request.loss_fn,
        loss_config=_loss_config(request),
        forward_only=request.forward_only,
    )
    spans = tuple(DatumSpans(_spans(d.model_input_spans), _spans(d.loss_fn_input_spans)) for d in request.data)
    return DecodedPass(op, spans)


def _check_weighted(request: wire.ForwardBackwardRequest) -> None:
    """Weights may be left out, but not those of sparse targets: what these do not list is written out as token 0."""
    for index, datum in enumerate(request.data):
        inputs = datum.loss_fn_inputs
        target = inputs.get("target_tokens")
        if target is not None and target.WhichOneof("encoding") == "sparse_csr" and "weights" not in inputs:
            raise BadRequest(
                f"Datum {index} has sparse target_tokens and no weights, so that what is not listed would count as "
                "token 0; give weights, in which it is zero."
            )


def _check_dense_size(request: wire.ForwardBackwardRequest) -> None:
    tensors = [tensor for datum in request.data for tensor in datum.loss_fn_inputs.values()]
    sparse = [tensor for tensor in tensors if tensor.WhichOneof("encoding") == "sparse_csr"]
    if sum(_product([max(0, size) for size in tensor.shape]) for tensor in sparse) > MAX_DENSE_ELEMENTS:
        raise BadRequest(f"The sparse tensors of this body exceed {MAX_DENSE_ELEMENTS} values written out; split it.")


def recover_address(head: bytes) -> tuple[str, int] | None:
    """Model id and sequence id from the beginning of a damaged body, if they stand there; None if not.

    Clients write fields 1 and 2 first, so that what follows may be broken and the sequence id can still be marked used.
    """
    # 0x0A is field 1 as a string, 0x10 below is field 2 as a varint.
    if len(head) < 2 or head[0] != 0x0A:
        return None
    length, position = _varint(head, 1)
    model_id = head[position : position + length]
    position += length
    if length <= 0 or position >= len(head) or head[position] != 0x10:
        return None
    seq_id, _ = _varint(head, position + 1)
    # A damaged number must not mark a place far ahead as used.
    if not 1 <= seq_id < 1 << 31:
        return None
    try:
        return model_id.decode(), seq_id
    except UnicodeDecodeError:
        return None


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """The number at a place and the place after it; -1 where the number does not end."""
    value = shift = 0
    # Five groups of seven bits hold any number that is accepted; damaged bytes could otherwise go on without end.
    while position < len(data) and shift < 35:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position
    return -1, position


def _loss_config(request: wire.ForwardBackwardRequest) -> dict[str, float]:
    """The second map is the full one where it is present; older clients write the first alone."""
    if not request.loss_fn_config_v2:
        return dict(request.loss_fn_config)
    config: dict[str, float] = {}
    for key, value in request.loss_fn_config_v2.items():
        if value.WhichOneof("value") != "number":
            raise BadRequest(f"loss_fn_config {key!r} is a text; the losses of this server take numbers only.")
        config[key] = value.number
    return config


def _datum(where: str, datum: wire.Datum) -> Datum:
    chunks = tuple(_chunk(where, chunk) for chunk in datum.model_input)
    inputs = {key: _tensor(f"{where}, {key}", tensor) for key, tensor in datum.loss_fn_inputs.items()}
    return Datum(chunks, inputs)


def _chunk(where: str, chunk: wire.Chunk) -> Chunk:
    kind = chunk.WhichOneof("chunk")
    if kind == "encoded_text":
        return TextChunk(sent_ids(where, chunk.encoded_text.tokens))
    if kind == "image":
        image = chunk.image
        size = image.override_dimensions if image.HasField("override_dimensions") else None
        return ImageChunk(
            image.data,
            image.format,
            image.expected_tokens if image.HasField("expected_tokens") else None,
            size.width if size else None,
            size.height if size else None,
        )
    raise BadRequest(
        f"{where} holds a chunk of kind {kind or 'unknown'} (dmel is sound); only text and images are taken."
    )


def _tensor(where: str, tensor: wire.Tensor) -> Tensor:
    dtype = DTYPES.get(tensor.dtype)
    if dtype is None:
        raise BadRequest(f"{where} has an unknown dtype; send float32 or int64.")
    shape = tuple(tensor.shape)
    if tensor.WhichOneof("encoding") == "sparse_csr":
        return _densified(where, dtype, shape, tensor.sparse_csr)
    item_bytes = np.dtype(dtype).itemsize
    # Clients may leave the shape of a vector out.
    if not shape and len(tensor.dense) % item_bytes == 0:
        shape = (len(tensor.dense) // item_bytes,)
    if any(size < 0 for size in shape) or _product(shape) * item_bytes != len(tensor.dense):
        raise BadRequest(f"{where} has the shape {list(shape)} but {len(tensor.dense)} bytes of {dtype}.")
    return Tensor(dtype, shape, tensor.dense)


def _densified(where: str, dtype: DType, shape: tuple[int, ...], csr: wire.SparseCsr) -> Tensor:
    """A compressed-sparse-row matrix written out; what it does not list is zero."""
    if len(shape) != 2 or min(shape) < 0:
        raise BadRequest(f"{where} is sparse with the shape {list(shape)}; give two dimensions.")
    try:
        values = np.frombuffer(csr.values, np.dtype(dtype))
        crow, col = np.frombuffer(csr.crow_indices, "<i8"), np.frombuffer(csr.col_indices, "<i8")
    except ValueError:
        raise BadRequest(f"{where}: the bytes of the sparse tensor are not whole numbers of values.") from None
    n_rows, n_cols = shape
    counts = np.diff(crow)
    # All is checked before numpy indexes with it: negative columns would count from the end without an error.
    consistent = (
        len(crow) == n_rows + 1
        and len(values) == len(col)
        and crow[0] == 0
        and crow[-1] == len(col)
        and (counts >= 0).all()
        and ((col >= 0) & (col < n_cols)).all()
    )
    if not consistent:
        raise BadRequest(f"{where}: the row and column indices of the sparse tensor contradict its shape.")
    dense = np.zeros(shape, np.dtype(dtype))
    dense[np.repeat(np.arange(n_rows), counts), col] = values
    return tensor_of(dense)


def _product(shape: Sequence[int]) -> int:
    result = 1
    for size in shape:
        result *= size
    return result


def _spans(spans: Sequence[wire.ProvenanceSpan]) -> tuple[Span, ...]:
    found = []
    for span in spans:
        kind = span.WhichOneof("span")
        if kind is None:
            raise BadRequest("A provenance span is empty; name a sequence, an offset and a length.")
        source = span.sampled_tokens if kind == "sampled_tokens" else span.prompt_tokens
        found.append(Span(source.sequence_id, source.offset, source.length, kind == "sampled_tokens"))
    return tuple(found)


def encode_pass_result(result: PassResult) -> bytes:
    """A ForwardBackwardOutput: for every output name the data of all datums end to end."""
    record = wire.ArrayRecord(type_tag="ArrayRecord", num_datums=len(result.outputs))
    for name in result.outputs[0] if result.outputs else ():
        tensors = [outputs[name] for outputs in result.outputs]
        # One more offset than there are datums: the last one is the end of the data.
        offsets = np.cumsum([0, *(len(tensor.data) for tensor in tensors)]).astype("<i8")
        record.fields[name].data = b"".join(tensor.data for tensor in tensors)
        record.fields[name].offsets = offsets.tobytes()
        record.fields[name].dtype = WIRE_DTYPES[tensors[0].dtype]
        record.fields[name].trailing_shape.extend(tensors[0].shape[1:])
    output = wire.ForwardBackwardOutput(loss_fn_output_type="ArrayRecord", metrics=result.metrics)
    # One record holds tensors of one trailing shape; data of other widths get records of their own.
    if len({outputs["logprobs"].shape[1:] for outputs in result.outputs}) > 1:
        output.loss_fn_outputs.extend(_single_records(result))
    else:
        output.loss_fn_outputs.append(record)
    return output.SerializeToString()


def _single_records(result: PassResult) -> list[wire.ArrayRecord]:
    records = []
    for outputs in result.outputs:
        # Encoded by the same function as a batch of one, so that both forms cannot drift apart.
        alone = wire.ForwardBackwardOutput()
        alone.ParseFromString(encode_pass_result(PassResult((outputs,), {})))
        records.append(alone.loss_fn_outputs[0])
    return records


def encode_sample_result(result: SampleResult) -> bytes:
    """A SampleResponse."""
    response = wire.SampleResponse(prompt_cache_hit_tokens=result.cache_hit_tokens)
    for sequence in result.sequences:
        response.sequences.append(
            wire.SampledSequence(
                stop_reason=STOP_REASONS[sequence.stop_reason],
                tokens=sequence.tokens,
                logprobs=sequence.logprobs,
                topk_sampled_logprobs=_wire_topk(sequence.topk),
            )
        )
    prompt = result.prompt
    if prompt.logprobs is not None:
        response.prompt_logprobs = prompt.logprobs
    if prompt.topk is not None:
        response.topk_prompt_logprobs.MergeFrom(_wire_topk(prompt.topk) or wire.TopkLogprobs())
    if prompt.targets is not None:
        response.target_prompt_logprobs.CopyFrom(_wire_tensor(prompt.targets))
    if prompt.alt_tokens is not None and prompt.alt_logprobs is not None:
        response.prompt_alt_tokens.tokens.CopyFrom(_wire_tensor(prompt.alt_tokens))
        response.prompt_alt_tokens.logprobs.CopyFrom(_wire_tensor(prompt.alt_logprobs))
    return response.SerializeToString()


def _wire_topk(topk: TopK | None) -> wire.TopkLogprobs | None:
    if topk is None:
        return None
    return wire.TopkLogprobs(token_ids=topk.token_ids, logprobs=topk.logprobs, k=topk.k, length=topk.length)


def _wire_tensor(tensor: Tensor) -> wire.Tensor:
    return wire.Tensor(dense=tensor.data, dtype=WIRE_DTYPES[tensor.dtype], shape=tensor.shape)

"""Passes on their way in: what the SDK writes is what we read; anything else is refused in words."""

import contextlib

import numpy as np
import pytest
import tinker
import torch
from hypothesis import given
from hypothesis import strategies as st
from tinker.proto.request_conv import forward_backward_request_to_proto
from tinker.types.forward_backward_input import ForwardBackwardInput
from tinker.types.forward_backward_request import ForwardBackwardRequest
from tinker.types.provenance_spans import PromptProvenanceSpan, SampledProvenanceSpan

from loreloop.protocol import wire_pb2 as wire
from loreloop.protocol.codec import DecodedPass, decode_pass, recover_address
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.training import ImageChunk, Span

TOKENS = [5, 6, 7]
INPUTS = {"target_tokens": [6, 7, 8], "weights": [1.0, 0.5, -1e-9]}


def datum(**settings: object) -> tinker.Datum:
    usual = {"model_input": tinker.ModelInput.from_ints(TOKENS), "loss_fn_inputs": INPUTS}
    return tinker.Datum(**(usual | settings))


def written(
    data: list[tinker.Datum], loss: str = "cross_entropy", config: dict | None = None, seq_id: int = 3
) -> bytes:
    """The SDK's own encoding."""
    asked = ForwardBackwardInput(data=data, loss_fn=loss, loss_fn_config=config)
    request = ForwardBackwardRequest(forward_backward_input=asked, model_id="s:train:0", seq_id=seq_id)
    return forward_backward_request_to_proto(request).SerializeToString()


def read(*data: tinker.Datum) -> DecodedPass:
    return decode_pass(written(list(data)))


def refused(request: wire.ForwardBackwardRequest) -> str:
    with pytest.raises(BadRequest) as caught:
        decode_pass(request.SerializeToString())
    return caught.value.message


def test_a_pass_is_read_as_the_sdk_wrote_it() -> None:
    op = read(datum(), datum()).op
    assert (op.model_id, op.seq_id, op.loss_fn, op.forward_only) == ("s:train:0", 3, "cross_entropy", False)
    assert len(op.data) == 2
    assert np.frombuffer(op.data[1].chunks[0].tokens, "<i4").tolist() == TOKENS
    assert op.data[0].inputs["target_tokens"].numpy().tolist() == INPUTS["target_tokens"]
    np.testing.assert_array_equal(op.data[0].inputs["weights"].numpy(), np.float32(INPUTS["weights"]))


def test_forward_only_is_heard() -> None:
    request = wire.ForwardBackwardRequest(model_id="m", seq_id=1, forward_only=True)
    assert decode_pass(request.SerializeToString()).op.forward_only


@given(
    rows=st.lists(
        st.lists(st.sampled_from([0.0, 0.0, 0.0, 0.0, 1.5, -2.0]), min_size=40, max_size=40), min_size=1, max_size=4
    )
)
def test_sparse_weights_are_written_out(rows: list[list[float]]) -> None:
    weights = torch.tensor(rows)
    given_datum = datum(
        model_input=tinker.ModelInput.from_ints(list(range(1, len(rows) + 1))),
        loss_fn_inputs={"target_tokens": torch.ones(weights.shape, dtype=torch.int64), "weights": weights},
    )
    inputs = read(given_datum).op.data[0].inputs
    np.testing.assert_array_equal(inputs["weights"].numpy(), weights.numpy())
    assert inputs["target_tokens"].shape == (len(rows), 40)


def test_sparse_tensors_really_come_as_such() -> None:
    weights = torch.zeros(3, 200)
    weights[1, 7] = 2.0
    body = written(
        [datum(loss_fn_inputs={"target_tokens": torch.zeros(3, 200, dtype=torch.int64), "weights": weights})]
    )
    sent = wire.ForwardBackwardRequest.FromString(body).data[0].loss_fn_inputs["weights"]
    assert sent.WhichOneof("encoding") == "sparse_csr"
    np.testing.assert_array_equal(decode_pass(body).op.data[0].inputs["weights"].numpy(), weights.numpy())


def test_a_tensor_without_shape_is_a_vector() -> None:
    request = wire.ForwardBackwardRequest()
    request.data.add().loss_fn_inputs["weights"].CopyFrom(
        wire.Tensor(dtype=wire.DTYPE_FLOAT32, dense=np.ones(4, "<f4").tobytes())
    )
    assert decode_pass(request.SerializeToString()).op.data[0].inputs["weights"].shape == (4,)


def test_settings_are_read_from_either_map() -> None:
    assert decode_pass(written([datum()], "ppo", {"clip_low_threshold": 0.5})).op.loss_config == {
        "clip_low_threshold": 0.5
    }
    older = wire.ForwardBackwardRequest(loss_fn_config={"beta": 0.1})
    assert decode_pass(older.SerializeToString()).op.loss_config == {"beta": 0.1}


def test_a_setting_that_is_a_text_is_refused() -> None:
    with pytest.raises(BadRequest, match="'loss_id' is a text"):
        decode_pass(written([datum()], "custom", {"loss_id": "x"}))


def test_spans_say_where_tokens_came_from() -> None:
    spans = [
        PromptProvenanceSpan(sequence_id="a", offset=0, length=1),
        SampledProvenanceSpan(sequence_id="a", offset=0, length=2),
    ]
    decoded = read(datum(model_input_spans=spans, loss_fn_input_spans=spans), datum())
    assert decoded.spans[0].model_input == (Span("a", 0, 1, False), Span("a", 0, 2, True))
    assert decoded.spans[0].loss_inputs == decoded.spans[0].model_input
    assert decoded.spans[1].model_input == ()


def test_an_empty_span_is_refused() -> None:
    request = wire.ForwardBackwardRequest(data=[wire.Datum(model_input_spans=[wire.ProvenanceSpan()])])
    assert "span is empty" in refused(request)


def test_images_are_passed_on() -> None:
    image = tinker.types.ImageChunk(data=b"png bytes", format="png", expected_tokens=4)
    chunks = read(datum(model_input=tinker.ModelInput(chunks=[image]))).op.data[0].chunks
    assert chunks == (ImageChunk(b"png bytes", "png", 4),)


@pytest.mark.parametrize(
    ("chunk", "words"),
    [
        (wire.Chunk(), "kind unknown"),
        (wire.Chunk(dmel=wire.DmelChunk(dmel=b"x")), "kind dmel"),
        (wire.Chunk(encoded_text=wire.EncodedTextChunk(tokens=b"abc")), "whole number of int32"),
    ],
)
def test_chunks_that_cannot_be_used(chunk: wire.Chunk, words: str) -> None:
    request = wire.ForwardBackwardRequest(data=[wire.Datum(), wire.Datum(model_input=[chunk])])
    assert words in refused(request)
    assert "Datum 1" in refused(request)


FOUR = np.ones(4, "<f4").tobytes()


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (wire.Tensor(dtype=wire.DTYPE_UNSPECIFIED, dense=FOUR), "unknown dtype"),
        (wire.Tensor(dtype=wire.DTYPE_BFLOAT16, dense=FOUR), "unknown dtype"),
        (wire.Tensor(dtype=wire.DTYPE_FLOAT32, shape=[5], dense=FOUR), "16 bytes"),
        (wire.Tensor(dtype=wire.DTYPE_FLOAT32, shape=[-2, -2], dense=FOUR), "shape"),
        (wire.Tensor(dtype=wire.DTYPE_FLOAT32, shape=[1 << 62, 1 << 62], dense=FOUR), "shape"),
        (wire.Tensor(dtype=wire.DTYPE_FLOAT32, dense=FOUR[:-1]), "15 bytes"),
        (wire.Tensor(dtype=wire.DTYPE_INT64, shape=[2, 2], dense=FOUR), "shape"),
    ],
)
def test_dense_tensors_that_contradict_themselves(tensor: wire.Tensor, words: str) -> None:
    request = wire.ForwardBackwardRequest(data=[wire.Datum(loss_fn_inputs={"weights": tensor})])
    assert words in refused(request)
    assert "weights" in refused(request)


def sparse(shape: list[int], crow: list[int], col: list[int], n_values: int | None = None) -> wire.Tensor:
    values = np.ones(len(col) if n_values is None else n_values, "<f4").tobytes()
    csr = wire.SparseCsr(values=values, crow_indices=np.int64(crow).tobytes(), col_indices=np.int64(col).tobytes())
    return wire.Tensor(dtype=wire.DTYPE_FLOAT32, shape=shape, sparse_csr=csr)


@pytest.mark.parametrize(
    "tensor",
    [
        sparse([2, 3], [0, 1], [0]),
        sparse([2, 3], [0, 1, 2], [0, 3]),
        sparse([2, 3], [0, 1, 2], [0, -1]),
        sparse([2, 3], [0, 2, 1], [0, 1]),
        sparse([2, 3], [1, 1, 2], [0, 1]),
        sparse([2, 3], [0, 1, 2], [0, 1], n_values=1),
        sparse([2, 3], [0, -5, 2], [0, 1]),
        sparse([2, 3], [], []),
        sparse([6], [0, 1], [0]),
        sparse([-2, 3], [0, 1, 2], [0, 1]),
        sparse([1, 1 << 40], [0, 1], [0]),
        wire.Tensor(dtype=wire.DTYPE_FLOAT32, shape=[1, 1], sparse_csr=wire.SparseCsr(values=b"abc")),
    ],
)
def test_sparse_tensors_that_contradict_themselves(tensor: wire.Tensor) -> None:
    assert "sparse" in refused(wire.ForwardBackwardRequest(data=[wire.Datum(loss_fn_inputs={"weights": tensor})]))


def test_weights_of_sparse_targets_are_not_left_out() -> None:
    """What such targets do not list is token 0 when written out, and would count like the others."""
    targets = torch.zeros(3, 200, dtype=torch.int64)
    targets[1, 7] = 5
    with pytest.raises(BadRequest, match="Datum 0 has sparse target_tokens and no weights"):
        read(datum(loss_fn_inputs={"target_tokens": targets}))
    assert read(datum(loss_fn_inputs={"target_tokens": targets, "weights": (targets > 0).float()}))
    full = torch.arange(1, 7).reshape(3, 2)
    assert read(datum(loss_fn_inputs={"target_tokens": full})).op.data[0].inputs["target_tokens"].shape == (3, 2)


@given(body=st.binary(max_size=200))
def test_hostile_bytes_are_read_or_refused(body: bytes) -> None:
    recover_address(body)
    with contextlib.suppress(BadRequest):
        assert isinstance(decode_pass(body), DecodedPass)


@given(cut=st.integers(0, 10_000), flip=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_damaged_bodies_are_read_or_refused(cut: int, flip: int, bit: int) -> None:
    body = bytearray(written([datum(), datum()], "ppo", {"clip_low_threshold": 0.5}))
    body[flip % len(body)] ^= 1 << bit
    with contextlib.suppress(BadRequest):
        decode_pass(bytes(body[: cut % (len(body) + 1)]))


@given(cut=st.integers(0, 10_000), seq_id=st.integers(1, 2**31 - 1))
def test_the_address_is_found_in_any_beginning_that_holds_it(cut: int, seq_id: int) -> None:
    body = written([datum()], seq_id=seq_id)
    head = len(wire.ForwardBackwardRequest(model_id="s:train:0", seq_id=seq_id).SerializeToString())
    assert recover_address(body[: max(head, cut)]) == ("s:train:0", seq_id)


@pytest.mark.parametrize(
    "head", [b"", b"\x0a", b"\x0a\x00\x10\x01", b"\x12\x01a\x10\x01", b"\x0a\x01a", b"\x0a\x01\xff\x10\x01"]
)
def test_no_address_is_made_up(head: bytes) -> None:
    assert recover_address(head) is None


def test_a_cut_off_sequence_id_is_no_address() -> None:
    head = wire.ForwardBackwardRequest(model_id="s:train:0", seq_id=300).SerializeToString()
    assert recover_address(head[:-1]) is None


def test_a_small_body_cannot_grow_without_bound() -> None:
    wide = {"weights": sparse([1, 1 << 23], [0, 0], [])}
    request = wire.ForwardBackwardRequest(data=[wire.Datum(loss_fn_inputs=wide) for _ in range(9)])
    assert refused(request)

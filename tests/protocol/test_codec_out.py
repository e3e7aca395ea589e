"""Results on their way out, read back by the SDK."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tinker.proto.response_conv import deserialize_forward_backward_output, deserialize_sample_response

from loreloop.protocol.codec import encode_pass_result, encode_sample_result
from loreloop.protocol.sampling import PromptReport, SampledSequence, SampleResult, TopK
from loreloop.protocol.tensors import Tensor, tensor_of
from loreloop.protocol.training import PassResult


def floats(*values: float) -> bytes:
    return np.float32(values).tobytes()


def ints(*values: int) -> bytes:
    return np.int32(values).tobytes()


def output(*shape: int) -> dict[str, Tensor]:
    return {"logprobs": tensor_of(np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32))}


@given(
    shapes=st.lists(
        st.one_of(st.tuples(st.integers(0, 9)), st.tuples(st.integers(1, 5), st.integers(1, 3))), max_size=6
    )
)
def test_outputs_come_back_in_order_and_shape(shapes: list[tuple[int, ...]]) -> None:
    outputs = tuple(output(*shape) for shape in shapes)
    back = deserialize_forward_backward_output(encode_pass_result(PassResult(outputs, {"loss:sum": -1.5})))
    assert back.metrics == {"loss:sum": -1.5}
    assert [tuple(got["logprobs"].shape) for got in back.loss_fn_outputs] == shapes
    for got, sent in zip(back.loss_fn_outputs, outputs, strict=True):
        np.testing.assert_array_equal(got["logprobs"].to_numpy().ravel(), sent["logprobs"].numpy().ravel())


def test_several_outputs_and_dtypes() -> None:
    one = output(3) | {"rank": tensor_of(np.arange(3, dtype=np.int64))}
    back = deserialize_forward_backward_output(encode_pass_result(PassResult((one, one), {})))
    assert back.loss_fn_outputs[1]["rank"].to_numpy().tolist() == [0, 1, 2]


def test_samples_come_back_as_they_were_drawn() -> None:
    top = TopK(ints(4, 9), floats(-0.5, -2.0), 2, 1)
    sequences = (
        SampledSequence(ints(4, 2), floats(-0.5, -0.25), "stop"),
        SampledSequence(ints(9), floats(-2.0), "length", top),
    )
    back = deserialize_sample_response(encode_sample_result(SampleResult(sequences, cache_hit_tokens=32)))
    assert [list(s.tokens) for s in back.sequences] == [[4, 2], [9]]
    assert [list(s.logprobs) for s in back.sequences] == [[-0.5, -0.25], [-2.0]]
    assert [s.stop_reason for s in back.sequences] == ["stop", "length"]
    assert back.sequences[1].topk_logprobs == [[(4, -0.5), (9, -2.0)]]
    assert back.prompt_cache_hit_tokens == 32
    assert back.prompt_logprobs is None


def test_prompt_reports_come_back() -> None:
    report = PromptReport(
        logprobs=floats(np.nan, -1.0),
        topk=TopK(ints(0, 0, 7, 8), floats(-99999.0, -99999.0, -0.25, -1.5), 2, 2),
        targets=tensor_of(np.float32([[-3.0]])),
        alt_tokens=tensor_of(np.int64([[5, 6]])),
        alt_logprobs=tensor_of(np.float32([[-1.0, -2.0]])),
    )
    back = deserialize_sample_response(encode_sample_result(SampleResult((), report)))
    assert back.prompt_logprobs == [None, -1.0]
    assert back.topk_prompt_logprobs == [None, [(7, -0.25), (8, -1.5)]]
    assert back.target_prompt_logprobs.to_numpy().tolist() == [[-3.0]]
    assert back.prompt_alt_tokens.tokens.to_numpy().tolist() == [[5, 6]]
    assert back.prompt_alt_tokens.logprobs.to_numpy().tolist() == [[-1.0, -2.0]]


def test_a_sample_that_stopped_at_once_is_not_lost() -> None:
    empty = SampleResult((SampledSequence(b"", b"", "length"),))
    assert len(deserialize_sample_response(encode_sample_result(empty)).sequences) == 1


@pytest.mark.parametrize("dtype", ["float32", "int64", "int32"])
def test_tensors_are_little_endian_views(dtype: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    tensor = tensor_of(array.T)
    assert tensor.shape == (3, 2)
    np.testing.assert_array_equal(tensor.numpy(), array.T)

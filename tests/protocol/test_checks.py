"""Sampling requests against the model they are for: blanks are filled, mistakes are named."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loreloop.protocol.checks import MAX_TOP_K, check_params, check_prompt, check_scores, check_targets
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.link import EngineInfo
from loreloop.protocol.rest import JsonTensor, Prompt, PromptChunk, SampleBody, WireSamplingParams

INFO = EngineInfo("tiny", "", vocab_size=100, context_window=64, eos_token_ids=(2, 3), max_lora_rank=8, n_threads=1)
PROMPT = Prompt((PromptChunk(tokens=(5, 6)), PromptChunk(tokens=(7,))))


def body(**fields: object) -> SampleBody:
    return SampleBody(PROMPT, WireSamplingParams(), "s:sample:0", 0, **fields)


def test_chunks_of_text_become_one() -> None:
    (chunk,) = check_prompt(PROMPT, INFO)
    assert np.frombuffer(chunk.tokens, "<i4").tolist() == [5, 6, 7]


@pytest.mark.parametrize(
    ("chunks", "words"),
    [
        ((), "empty"),
        ((PromptChunk(),), "empty"),
        ((PromptChunk(tokens=(1, 100)),), "token id 100; ids go from 0 to 99"),
        ((PromptChunk(tokens=(1, -1)),), "token id -1"),
        ((PromptChunk(tokens=(2**70,)),), "ids go from"),
        ((PromptChunk(type="image"),), "type 'image'"),
    ],
)
def test_prompts_that_cannot_be_used(chunks: tuple[PromptChunk, ...], words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        check_prompt(Prompt(chunks), INFO)


def test_blanks_are_filled() -> None:
    params = check_params(WireSamplingParams(), 10, INFO, seed=7)
    assert (params.max_tokens, params.seed, params.temperature) == (54, 7, 1.0)
    assert (params.stop_tokens, params.stop_strings) == ((2, 3), ())


@pytest.mark.parametrize(
    ("stop", "words"),
    [
        (tuple(f"s{number}" for number in range(65)), "at most 64 strings"),
        (tuple(range(1025)), "or 1024 token ids"),
        ("é" * 513, "1026 bytes; at most 1024"),
    ],
)
def test_what_ends_a_text_is_bounded(stop: object, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        check_params(WireSamplingParams(stop=stop), 1, INFO, 0)  # type: ignore[arg-type]


def test_a_prompt_over_the_window_is_refused_before_it_is_put_together() -> None:
    with pytest.raises(BadRequest, match=r"context window: 66 \+ 1 > 64"):
        check_prompt(Prompt((PromptChunk(tokens=(5,) * 33),) * 2), INFO)


@pytest.mark.parametrize(
    ("stop", "tokens", "strings"),
    [(None, (2, 3), ()), ((), (), ()), ("x", (), ("x",)), (("x", "y"), (), ("x", "y")), ((9, 8), (9, 8), ())],
)
def test_an_explicit_stop_takes_the_place_of_the_end(stop: object, tokens: tuple, strings: tuple) -> None:
    params = check_params(WireSamplingParams(stop=stop), 1, INFO, 0)  # type: ignore[arg-type]
    assert (params.stop_tokens, params.stop_strings) == (tokens, strings)


@pytest.mark.parametrize(
    ("wire", "n_prompt", "words"),
    [
        (WireSamplingParams(max_tokens=55), 10, "10 \\+ 55 > 64"),
        (WireSamplingParams(), 64, "64 \\+ 1 > 64"),
        (WireSamplingParams(), 99, "context window"),
        (WireSamplingParams(temperature=float("inf")), 1, "finite"),
        (WireSamplingParams(stop=("a", 3)), 1, "mixes"),
        (WireSamplingParams(stop=""), 1, "empty string"),
    ],
)
def test_parameters_that_cannot_be_used(wire: WireSamplingParams, n_prompt: int, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        check_params(wire, n_prompt, INFO, 0)


@given(seed=st.integers(-(2**80), 2**80))
def test_any_seed_is_folded_into_63_bits(seed: int) -> None:
    assert 0 <= check_params(WireSamplingParams(seed=seed), 1, INFO, 0).seed < 2**63


@pytest.mark.parametrize(
    "field", [{"top_p": -0.1}, {"top_p": 1.1}, {"top_k": -2}, {"temperature": -0.1}, {"max_tokens": 0}]
)
def test_ranges_are_in_the_types(field: dict[str, float]) -> None:
    with pytest.raises(msgspec.ValidationError, match=next(iter(field))):
        msgspec.json.decode(msgspec.json.encode(field), type=WireSamplingParams)


def test_an_unknown_parameter_is_named() -> None:
    with pytest.raises(msgspec.ValidationError, match="beam_width"):
        msgspec.json.decode(b'{"beam_width": 4}', type=WireSamplingParams)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"topk_prompt_logprobs": MAX_TOP_K + 1}, "topk_prompt_logprobs"),
        ({"topk_sample_logprobs": MAX_TOP_K + 1}, "topk_sample_logprobs"),
        ({"prompt_alt_tokens_k": MAX_TOP_K + 1}, "prompt_alt_tokens_k"),
        ({"prompt_logprobs_last_n": 3}, "has 2"),
        ({"target_prompt_logprobs": JsonTensor((1, 2, 3), shape=(3, 1))}, r"must be \[2, K\]"),
        ({"target_prompt_logprobs": JsonTensor((1, 2))}, r"must be \[2, K\]"),
        ({"target_prompt_logprobs": JsonTensor((1,), shape=(2, 1))}, "1 values"),
        ({"target_prompt_logprobs": JsonTensor((1,), "int64", (2, 2), (0, 1), (0,))}, "contradict"),
        ({"target_prompt_logprobs": JsonTensor((1,), "int64", (2, 2), (0, 2, 1), (0,))}, "contradict"),
        ({"target_prompt_logprobs": JsonTensor((1,), "int64", (2, 2), (0, 1, 1), (2,))}, "outside"),
    ],
)
def test_questions_about_a_prompt_that_have_no_answer(fields: dict[str, object], words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        check_scores(body(**fields), 3)


def test_a_target_beyond_64_bits_is_refused() -> None:
    with pytest.raises(BadRequest):
        check_scores(body(target_prompt_logprobs=JsonTensor((2**70, 1), shape=(2, 1))), 3)


@given(rows=st.lists(st.lists(st.integers(0, 9), min_size=4, max_size=4), min_size=2, max_size=2))
def test_sparse_targets_ask_nothing_where_they_list_nothing(rows: list[list[int]]) -> None:
    listed = [[(column, token) for column, token in enumerate(row) if token] for row in rows]
    crow = (0, len(listed[0]), len(listed[0]) + len(listed[1]))
    pairs = [*listed[0], *listed[1]]
    columns, tokens = tuple(column for column, _ in pairs), tuple(token for _, token in pairs)
    tensor = JsonTensor(tokens, "int64", (2, 4), crow, columns)
    scores = check_scores(body(target_prompt_logprobs=tensor), 3)
    assert scores.targets is not None
    np.testing.assert_array_equal(scores.targets.numpy(), np.where(np.array(rows) == 0, -1, rows))


@pytest.mark.parametrize("token", [-2, 100])
def test_targets_are_in_the_vocabulary(token: int) -> None:
    scores = check_scores(body(target_prompt_logprobs=JsonTensor((token, -1), shape=(2, 1))), 3)
    with pytest.raises(BadRequest, match="outside"):
        check_targets(scores, INFO)


def test_what_is_asked_is_passed_on() -> None:
    scores = check_scores(body(prompt_logprobs=True, prompt_logprobs_last_n=2, topk_prompt_logprobs=4), 3)
    assert (scores.logprobs, scores.last_n, scores.top_k, scores.wanted) == (True, 2, 4, True)
    assert not check_scores(body(), 3).wanted

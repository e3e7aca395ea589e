"""Checks a sampling request against the model it is for, and fills in what the client left open.

Pure; BadRequest says what was asked, what is wrong and what to do.
"""

from __future__ import annotations

import hashlib
import itertools

import numpy as np

from loreloop.protocol.errors import BadRequest, TooLong
from loreloop.protocol.link import EngineInfo
from loreloop.protocol.rest import JsonTensor, Prompt, PromptChunk, SampleBody, WireSamplingParams
from loreloop.protocol.sampling import PromptScores, SamplingParams
from loreloop.protocol.tensors import Tensor, tensor_of
from loreloop.protocol.token_ids import pack_ids
from loreloop.protocol.training import Chunk, ImageChunk, TextChunk

MAX_TOP_K = 1000
MIN_TEMPERATURE = 1e-6  # logits of some thousands divided by it are far from fp32's end
MAX_BIASES = 1024
MAX_STOPS, MAX_STOP_BYTES = 64, 1024  # strings, and bytes of each: every token's text is searched for all of them
MAX_STOP_IDS = 1024
SEEDS = 1 << 63  # a draw's key has 64 bits, of which these are used
MAX_SEED_BYTES = 64


def check_prompt(prompt: Prompt, info: EngineInfo) -> tuple[Chunk, ...]:
    """The prompt, neighbouring texts joined; of images only the form is looked at."""
    n_tokens = sum(len(chunk.tokens) for chunk in prompt.chunks)
    if n_tokens > info.context_window:  # before anything is made of so many
        raise too_long(n_tokens, 1, info)
    chunks: list[Chunk] = []
    # Neighbouring texts become one chunk, so that equal prompts are equal however a client has cut them.
    for is_text, run in itertools.groupby(prompt.chunks, lambda chunk: chunk.type == "encoded_text"):
        if not is_text:
            chunks += [_image(chunk, info) for chunk in run]
        elif tokens := [token for chunk in run for token in chunk.tokens]:
            chunks.append(check_tokens(tokens, info))
    return tuple(chunks) or (check_tokens([], info),)


def _image(chunk: PromptChunk, info: EngineInfo) -> ImageChunk:
    if chunk.type != "image" or info.images is None:
        kinds = "text only" if info.images is None else "encoded_text and image"
        raise BadRequest(f"The prompt holds a chunk of type {chunk.type!r}; {info.base_model} takes {kinds}.")
    size = chunk.override_dimensions
    return ImageChunk(
        chunk.data, chunk.format, chunk.expected_tokens, size.width if size else None, size.height if size else None
    )


def check_tokens(tokens: list[int], info: EngineInfo) -> TextChunk:
    """The ids as a chunk of text; BadRequest where there is none, or one lies outside the vocabulary."""
    if not tokens:
        raise BadRequest("The prompt is empty; send at least one token.")
    # Checked on this side already, since an id beyond the embedding would read or fail inside the engine's kernels.
    low, high = min(tokens), max(tokens)
    if low < 0 or high >= info.vocab_size:
        bad = low if low < 0 else high
        raise BadRequest(f"The prompt holds the token id {bad}; ids go from 0 to {info.vocab_size - 1}.")
    return TextChunk(pack_ids(tokens))


def check_params(wire: WireSamplingParams, n_prompt: int, info: EngineInfo, seed: int) -> SamplingParams:
    """Parameters with every blank filled; `seed` is used where the client gave none. Who wants no tokens (`max_tokens`
    0) draws one all the same, which costs nothing beside the prompt, and does not tell it."""
    window = info.context_window
    max_tokens = wire.max_tokens if wire.max_tokens is not None else window - n_prompt
    if n_prompt + max_tokens > window or (max_tokens < 1 and wire.max_tokens != 0):
        raise too_long(n_prompt, max(max_tokens, 1), info)
    if not np.isfinite(wire.temperature):
        raise BadRequest("The temperature must be a finite number.")
    if 0 < wire.temperature < MIN_TEMPERATURE:
        raise BadRequest(
            f"The temperature {wire.temperature:g} is too small to divide by; send at least {MIN_TEMPERATURE:g}, or 0 "
            "for the likeliest token each time."
        )
    stop_tokens, stop_strings = _stops(wire.stop, info)
    return SamplingParams(
        max_tokens=max(max_tokens, 1),
        seed=seed if wire.seed is None else seed_of(wire.seed),
        temperature=wire.temperature,
        # `top_p` 0 leaves the likeliest token alone, which `top_k` 1 says without a division; `top_k` 0 means off, as
        # -1 does.
        top_k=1 if wire.top_p == 0 else -1 if wire.top_k == 0 else wire.top_k,
        top_p=wire.top_p or 1.0,
        stop_tokens=stop_tokens,
        stop_strings=stop_strings,
        min_p=wire.min_p,
        presence_penalty=wire.presence_penalty,
        frequency_penalty=wire.frequency_penalty,
        repetition_penalty=wire.repetition_penalty,
        logit_bias=_biases(wire.logit_bias or {}, info),
        grammar=wire.grammar or "",
    )


def seed_of(given: int) -> int:
    """The seed itself where it is one of ours; any other integer has a stream of its own too, by its hash."""
    if 0 <= given < SEEDS:
        return given
    if given.bit_length() > 8 * MAX_SEED_BYTES - 1:
        raise BadRequest(f"The seed has {given.bit_length()} bits; send an integer of at most 64 bits.")
    # A hash rather than a remainder, so that seeds which differ by a multiple of 2^63 do not draw alike.
    digest = hashlib.blake2b(given.to_bytes(MAX_SEED_BYTES, "little", signed=True), digest_size=8).digest()
    return int.from_bytes(digest, "little") % SEEDS


def too_long(n_prompt: int | str, max_tokens: int, info: EngineInfo) -> TooLong:
    """The error of a prompt that leaves no room for `max_tokens`. `n_prompt` may be words, where the prompt was not
    counted to its end."""
    return TooLong(
        f"Prompt length plus max_tokens exceeds the model's context window: {n_prompt} + {max_tokens} > "
        f"{info.context_window}. Shorten the prompt or ask for fewer tokens."
    )


def _biases(biases: dict[str, float], info: EngineInfo) -> tuple[tuple[int, float], ...]:
    if len(biases) > MAX_BIASES:
        raise BadRequest(f"logit_bias names {len(biases)} tokens; at most {MAX_BIASES} are taken.")
    for token in biases:
        is_id = token.isascii() and token.isdigit() and len(token) < 10 and str(int(token)) == token
        if not is_id or int(token) >= info.vocab_size:
            raise BadRequest(
                f"logit_bias names the token {token[:20]!r}; token ids go from 0 to {info.vocab_size - 1}."
            )
    return tuple((int(token), bias) for token, bias in biases.items())


def _stops(stop: str | tuple[str | int, ...] | None, info: EngineInfo) -> tuple[tuple[int, ...], tuple[str, ...]]:
    if stop is None:
        return info.eos_token_ids, ()
    if isinstance(stop, str):
        stop = (stop,)
    strings = tuple(item for item in stop if isinstance(item, str))
    tokens = tuple(item for item in stop if isinstance(item, int))
    if strings and tokens:
        raise BadRequest("stop mixes strings and token ids; give one kind.")
    if len(strings) > MAX_STOPS or len(tokens) > MAX_STOP_IDS:
        raise BadRequest(
            f"stop holds {len(stop)} entries; at most {MAX_STOPS} strings or {MAX_STOP_IDS} token ids are followed."
        )
    if "" in strings:
        raise BadRequest("stop holds an empty string, which every text contains; leave it out.")
    longest = max((len(text.encode(errors="surrogatepass")) for text in strings), default=0)
    if longest > MAX_STOP_BYTES:
        raise BadRequest(f"stop holds a string of {longest} bytes; at most {MAX_STOP_BYTES} are looked for.")
    return tokens, strings


def check_scores(body: SampleBody, n_prompt: int) -> PromptScores:
    """What the client wants to know about its prompt."""
    for name, k in (
        ("topk_prompt_logprobs", body.topk_prompt_logprobs),
        ("topk_sample_logprobs", body.topk_sample_logprobs),
        ("prompt_alt_tokens_k", body.prompt_alt_tokens_k),
    ):
        if k > MAX_TOP_K:
            raise BadRequest(f"{name} is {k}; at most {MAX_TOP_K} are given.")
    last_n = body.prompt_logprobs_last_n
    if last_n is not None and last_n > n_prompt - 1:
        raise BadRequest(f"prompt_logprobs_last_n is {last_n}; a prompt of {n_prompt} tokens has {n_prompt - 1}.")
    targets = _targets(body.target_prompt_logprobs, n_prompt) if body.target_prompt_logprobs else None
    return PromptScores(
        bool(body.prompt_logprobs), last_n, body.topk_prompt_logprobs, body.prompt_alt_tokens_k, targets
    )


def _targets(tensor: JsonTensor, n_prompt: int) -> Tensor:
    shape = tensor.shape or ()
    if len(shape) != 2 or shape[0] != n_prompt - 1 or not 0 < shape[1] <= MAX_TOP_K:
        raise BadRequest(f"target_prompt_logprobs has the shape {list(shape)}; it must be [{n_prompt - 1}, K].")
    try:
        values = np.array(tensor.data, np.int64)
    except OverflowError:
        raise BadRequest("target_prompt_logprobs holds a number beyond 64 bits.") from None
    if tensor.sparse_crow_indices is None or tensor.sparse_col_indices is None:
        if values.size != shape[0] * shape[1]:
            raise BadRequest(f"target_prompt_logprobs has {values.size} values for the shape {list(shape)}.")
        return tensor_of(values.reshape(shape))
    # Cells that are not listed ask for nothing; 0 would ask for token 0.
    dense = np.full(shape, -1, np.int64)
    crow = np.array(tensor.sparse_crow_indices, np.int64)
    counts = crow[1:] - crow[:-1]
    columns = np.array(tensor.sparse_col_indices, np.int64)
    if len(counts) != shape[0] or (counts < 0).any() or counts.sum() != values.size or len(columns) != values.size:
        raise BadRequest("The sparse indices of target_prompt_logprobs contradict its shape.")
    # numpy would take a negative column from the end and give no error.
    if ((columns < 0) | (columns >= shape[1])).any():
        raise BadRequest("The sparse columns of target_prompt_logprobs lie outside its shape.")
    dense[np.repeat(np.arange(shape[0]), counts), columns] = values
    return tensor_of(dense)


def check_targets(scores: PromptScores, info: EngineInfo) -> None:
    """BadRequest where an id of the prompt's targets is neither -1 nor in the vocabulary."""
    if scores.targets is None:
        return
    ids = scores.targets.numpy()
    if (ids < -1).any() or (ids >= info.vocab_size).any():  # type: ignore[operator]
        raise BadRequest(f"target_prompt_logprobs holds ids outside -1 … {info.vocab_size - 1}.")

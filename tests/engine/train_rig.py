"""A trainer over a tiny model, with short ways to make passes and to read what came of them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from loreloop.engine.attention import FastAttention, FixedAttention
from loreloop.engine.head import Head
from loreloop.engine.images import ImageTable, text_only
from loreloop.engine.training.model_state import ModelState, new_state
from loreloop.engine.training.trainer import Trainer, TrainPass
from loreloop.formats.load import load_decoder
from loreloop.formats.vision import load_vision
from loreloop.model.linear import FastProducts, TiledProducts
from loreloop.protocol.tensors import tensor_of
from loreloop.protocol.training import Datum, ForwardBackward, LoraSpec, TextChunk

CPU = torch.device("cpu")


class Rig:
    """One decoder and its trainer."""

    def __init__(self, folder: Path, *, deterministic=False, dtype=torch.float32, max_rows=1024) -> None:
        products = TiledProducts() if deterministic else FastProducts()
        attention = FixedAttention() if deterministic else FastAttention()
        self.decoder = load_decoder(folder, dtype=dtype, device=CPU, products=products)
        self.dtype = dtype
        self.images = ImageTable(load_vision(folder, dtype=dtype, device=CPU), CPU, 1 << 20)
        head = Head(self.decoder, fixed_rows=deterministic)
        self.trainer = Trainer(self.decoder, attention, head, max_rows, max_rows, images=self.images)

    def state(self, rank=4, seed=0, *, unembed=False, attn=True, mlp=True, experts="shared_outer") -> ModelState:
        """A model whose A and B are both away from zero, so that every gradient is too."""
        lora = LoraSpec(rank, seed, train_attn=attn, train_mlp=mlp, train_unembed=unembed, experts=experts)
        state = new_state(self.decoder.spec, lora, self.dtype, CPU)
        generator = torch.Generator().manual_seed(seed)
        state.master.add_(torch.randn(state.master.shape, generator=generator), alpha=0.05)
        state.refresh_weights()
        return state

    def run(self, *passes: tuple[ModelState, ForwardBackward]) -> list[list[Tensor]]:
        """Runs passes as one batch; the log-probs of every datum of every pass."""
        works = [laid_out(op, state, self.images) for state, op in passes]
        self.trainer.run(works)
        return [[torch.tensor(o["logprobs"].numpy()) for o in work.result().outputs] for work in works]

    def grad(self, op: ForwardBackward, **lora) -> Tensor:
        """The gradient of one pass on a new model."""
        state = self.state(**lora)
        self.run((state, op))
        return state.grad


def datum(tokens: Sequence[int], targets=None, **inputs) -> Datum:
    """Targets are the next tokens, weights one, unless something else is given."""
    tokens = np.asarray(tokens, np.int32)
    targets = np.append(tokens[1:], tokens[0]) if targets is None else np.asarray(targets)
    inputs = inputs or {"weights": np.ones(targets.shape)}
    tensors = {name: tensor_of(np.asarray(value, np.float32)) for name, value in inputs.items()}
    return Datum(
        (TextChunk(tokens.astype("<i4").tobytes()),), {"target_tokens": tensor_of(targets.astype(np.int64)), **tensors}
    )


def policy_datum(tokens: Sequence[int], seed=0, **inputs) -> Datum:
    """Random advantages, and sampler log-probs in the region of a random model's."""
    random = np.random.default_rng(seed)
    n = len(tokens)
    return datum(tokens, advantages=random.normal(size=n), logprobs=random.normal(-6, 1, n), **inputs)


def train_pass(*data: Datum, loss="cross_entropy", config=None, forward_only=False, model="m") -> ForwardBackward:
    return ForwardBackward(model, 1, "r", tuple(data), loss, config or {}, forward_only)


def laid_out(op: ForwardBackward, state: ModelState, images: ImageTable | None = None) -> TrainPass:
    """A pass as the trainer takes it."""
    return TrainPass(op=op, state=state, sequences=[(images or text_only()).lay_out(datum.chunks) for datum in op.data])


def random_tokens(n: int, seed=0, vocab_size=512) -> list[int]:
    return np.random.default_rng(seed).integers(0, vocab_size, n).tolist()


def relative_error(value: Tensor, reference: Tensor) -> float:
    return float((value - reference).norm() / reference.norm())

"""What every rank and the single process train on."""

import torch

from loreloop.engine.training.model_state import ModelState, new_state
from loreloop.model.spec import DecoderSpec
from loreloop.protocol.training import ForwardBackward, LoraSpec
from tests.engine.train_rig import CPU, datum, random_tokens, train_pass

LORA = LoraSpec(4, 0, train_unembed=True)


def scene() -> ForwardBackward:
    """Two sequences that share a beginning, and one that does not."""
    shared = random_tokens(20, 1)
    return train_pass(
        datum([*shared, *random_tokens(9, 2)]), datum([*shared, *random_tokens(13, 3)]), datum(random_tokens(31, 4))
    )


def whole_state(spec: DecoderSpec, lora: LoraSpec = LORA) -> ModelState:
    """An adapter of which neither A nor B is zero."""
    state = new_state(spec, lora, torch.float32, CPU)
    noise = torch.randn(state.master.shape, generator=torch.Generator().manual_seed(5))
    state.master.add_(noise, alpha=0.05)
    state.refresh_weights()
    return state

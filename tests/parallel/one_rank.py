"""One rank of a cut trainer, and what it has computed."""

from pathlib import Path

import torch
from torch import Tensor

from loreloop.engine.attention import FastAttention
from loreloop.engine.head import Head
from loreloop.engine.training.model_state import ModelState
from loreloop.engine.training.trainer import Trainer
from loreloop.formats.load import load_weights
from loreloop.model.linear import FastProducts
from loreloop.parallel.adapter_share import AdapterShare
from loreloop.parallel.cut_decoder import decoder_of
from loreloop.parallel.place import Place
from tests.engine.train_rig import CPU, laid_out
from tests.parallel.scene import LORA, scene, whole_state


def trained_rank(place: Place, folder: Path) -> dict[str, Tensor]:
    """Log-probabilities and this rank's gradients of a pass, with the places of those in the whole adapter."""
    spec, weights = load_weights(folder, dtype=torch.float32, device=CPU)
    decoder = decoder_of(spec, weights, torch.float32, FastProducts(), place)
    trainer = Trainer(decoder, FastAttention(), Head(decoder, fixed_rows=False), 1024, 1024)
    share = AdapterShare(spec, LORA, place)
    state = ModelState(share, torch.float32, CPU)
    state.master.copy_(share.take(whole_state(spec).master))
    state.refresh_weights()
    work = laid_out(scene(), state)
    trainer.run([work])
    share.sum_up(state.gradient)
    logps = torch.cat([torch.tensor(o["logprobs"].numpy()) for o in work.result().outputs])
    return {"logps": logps, "grad": state.grad, "numbers": share.share.numbers(LORA)}

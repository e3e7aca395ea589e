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
from loreloop.parallel.cut_decoder import decoder_of, holding
from loreloop.parallel.place import Place
from loreloop.parallel.sequence import training_decoder
from loreloop.parallel.stages import Lane, stage_of
from tests.engine.train_rig import CPU, laid_out
from tests.parallel.scene import LORA, scene, whole_state


def trained_rank(
    place: Place, folder: Path, max_rows: int = 1024, kept_rows: int = 1024, quantize: bool = False
) -> dict[str, Tensor]:
    """Log-probabilities and this rank's gradients of a pass, with the places of those in the whole adapter."""
    spec, weights = load_weights(folder, dtype=torch.float32, device=CPU, quantize=quantize, held=holding(place))
    decoder = decoder_of(spec, weights, torch.float32, FastProducts(), place)
    head, stage = Head(decoder, fixed_rows=False), stage_of(spec, place)
    trainer = Trainer(training_decoder(decoder, place), FastAttention(), head, max_rows, kept_rows, stage=stage)
    share = AdapterShare(spec, LORA, place)
    state = ModelState(share, torch.float32, CPU)
    state.master.copy_(share.take(whole_state(spec).master))
    state.refresh_weights()
    work = laid_out(scene(), state)
    trainer.run([work])
    share.sum_up(state.gradient)
    logps = torch.cat([torch.tensor(o["logprobs"].numpy()) for o in work.result().outputs])
    sent = torch.tensor(stage.n_bytes[Lane.TRAINING])
    return {"logps": logps, "grad": state.grad, "numbers": share.share.numbers(LORA), "sent": sent}


def patience(place: Place) -> dict[str, float]:
    """How long this rank waits for others, in the group of all and in those of each axis."""
    groups = {"all": place.group, **place.groups}
    return {name: group._get_backend(CPU).options._timeout.total_seconds() for name, group in groups.items()}

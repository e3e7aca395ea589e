"""One rank of a cut trainer: `python -m tests.parallel.one_rank RANK SIZE STORE FOLDER OUT`, a process of its own."""

import sys
from pathlib import Path

import torch
from torch import distributed as dist

from loreloop.engine.attention import FastAttention
from loreloop.engine.head import Head
from loreloop.engine.training.trainer import Trainer
from loreloop.formats.load import load_weights
from loreloop.model.linear import FastProducts
from loreloop.model.lora import LoraLayout
from loreloop.parallel.collectives import summed
from loreloop.parallel.cut_decoder import cut_decoder
from loreloop.parallel.tensor_cut import TensorCut
from tests.engine.train_rig import CPU, ModelState, laid_out
from tests.parallel.scene import LORA, scene, whole_state


def main() -> None:
    rank, size, (store, folder, out) = int(sys.argv[1]), int(sys.argv[2]), map(Path, sys.argv[3:])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(str(store), size), rank=rank, world_size=size)
    spec, weights = load_weights(folder, dtype=torch.float32, device=CPU)
    cut = TensorCut(spec, rank, size)
    group = dist.group.WORLD
    decoder = cut_decoder(cut, weights, torch.float32, FastProducts(), group)
    trainer = Trainer(decoder, FastAttention(), Head(decoder, fixed_rows=False), 1024, 1024)
    layout = LoraLayout(cut.local, LORA)
    state = ModelState(layout, torch.float32, CPU)
    numbers = cut.numbers(LoraLayout(spec, LORA), layout)
    state.master.copy_(whole_state(spec).master[numbers])
    state.refresh_weights()
    work = laid_out(scene(), state)
    trainer.run([work])
    for matrix in cut.summed(state.gradient):
        matrix.copy_(summed(matrix, group))
    logps = torch.cat([torch.tensor(o["logprobs"].numpy()) for o in work.result().outputs])
    torch.save({"logps": logps, "grad": state.grad, "numbers": numbers}, out)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

"""One rank of a cut trainer: `python -m tests.parallel.one_rank RANK MESH STORE FOLDER OUT`, a process of its own."""

import sys
from pathlib import Path

import torch
from torch import distributed as dist

from loreloop.engine.attention import FastAttention
from loreloop.engine.head import Head
from loreloop.engine.training.model_state import ModelState
from loreloop.engine.training.trainer import Trainer
from loreloop.formats.load import load_weights
from loreloop.model.linear import FastProducts
from loreloop.parallel.adapter_share import AdapterShare
from loreloop.parallel.cut_decoder import decoder_of
from loreloop.parallel.mesh import parse_mesh
from loreloop.parallel.place import place_of
from tests.engine.train_rig import CPU, laid_out
from tests.parallel.scene import LORA, scene, whole_state


def main() -> None:
    rank, mesh, (store, folder, out) = int(sys.argv[1]), parse_mesh(sys.argv[2]), map(Path, sys.argv[3:])
    size = mesh.n_ranks
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(str(store), size), rank=rank, world_size=size)
    place = place_of(mesh)
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
    numbers = share.share.numbers(LORA)
    logps = torch.cat([torch.tensor(o["logprobs"].numpy()) for o in work.result().outputs])
    torch.save({"logps": logps, "grad": state.grad, "numbers": numbers}, out)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

"""One rank of a trainer whose experts are spread: passes, steps and checkpoints, and what it has said to others."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from loreloop.engine.attention import FastAttention
from loreloop.engine.head import Head
from loreloop.engine.images import text_only
from loreloop.engine.sampling.sampler import Sampler, SamplerLimits, refuse
from loreloop.engine.training.model_state import ModelState, new_state, read_checkpoint, write_checkpoint
from loreloop.engine.training.optimizer import adam_step
from loreloop.engine.training.trainer import Trainer
from loreloop.formats.configuration import read_spec
from loreloop.formats.load import load_weights
from loreloop.model.linear import FastProducts
from loreloop.parallel import exchange
from loreloop.parallel.adapter_share import AdapterShare
from loreloop.parallel.cut_decoder import decoder_of, holding
from loreloop.parallel.place import ALONE, Place
from loreloop.protocol.training import AdamParams, ForwardBackward, LoraSpec
from tests.engine.sample_rig import drain, sample_op
from tests.engine.train_rig import CPU, laid_out
from tests.parallel.scene import whole_state


@dataclass(frozen=True)
class Case:
    """A pass, on the adapter that `whole_state` gives for `lora`."""

    lora: LoraSpec
    op: ForwardBackward


def trainer_of(place: Place, folder: Path, quantize: bool = False) -> Trainer:
    spec, weights = load_weights(folder, dtype=torch.float32, device=CPU, quantize=quantize, held=holding(place))
    decoder = decoder_of(spec, weights, torch.float32, FastProducts(), place)
    return Trainer(decoder, FastAttention(), Head(decoder, fixed_rows=False), 1024, 1024)


def state_of(place: Place, folder: Path, lora: LoraSpec) -> ModelState:
    spec = read_spec(folder)
    state = ModelState(AdapterShare(spec, lora, place), torch.float32, CPU)
    state.master.copy_(state.share.take(whole_state(spec, lora).master))
    state.refresh_weights()
    return state


def logps_of(
    trainer: Trainer, state: ModelState, op: ForwardBackward, pause: Callable[[], None] = lambda: None
) -> Tensor:
    work = laid_out(op, state)
    trainer.run([work], pause)
    return torch.cat([torch.tensor(output["logprobs"].numpy()) for output in work.result().outputs])


def passed(place: Place, folder: Path, cases: list[Case], quantize: bool = False) -> list[dict[str, Any]]:
    """Of each case log-probabilities, this rank's gradients, where those stand in the whole adapter, bytes sent, and of
    each pause how many messages there had been."""
    trainer, found = trainer_of(place, folder, quantize), []
    for case in cases:
        state, pauses = state_of(place, folder, case.lora), []
        with counted_bytes() as sent:
            logps = logps_of(trainer, state, case.op, lambda pauses=pauses: pauses.append(len(sent)))
        state.share.sum_up(state.gradient)
        numbers = state.share.share.numbers(case.lora)
        found.append({"logps": logps, "grad": state.grad, "numbers": numbers, "bytes": sum(sent), "pauses": pauses})
    return found


def stepped(place: Place, folder: Path, case: Case, n_steps: int) -> dict[str, Any]:
    """A fresh adapter's numbers before and after a few steps, and the norms that were reported."""
    trainer = trainer_of(place, folder)
    state = new_state(read_spec(folder), case.lora, torch.float32, CPU, place)
    fresh, norms = state.master.clone(), []
    for _ in range(n_steps):
        logps_of(trainer, state, case.op)
        norms.append(adam_step(state, AdamParams(1e-2, 0.9, 0.95, 1e-8, 0.0, 0.0))["unclipped_grad_l2:mean"])
    numbers = state.share.share.numbers(case.lora)
    return {"fresh": fresh, "master": state.master, "moment2": state.moment2, "numbers": numbers, "norms": norms}


def sampled(place: Place, folder: Path, prompts: list[list[int]]) -> list[tuple[Any, Any, Any]]:
    """Tokens, log-probabilities and routes of two samples a prompt, all in common steps; the prompts take turns between
    two adapters and none."""
    trainer = trainer_of(place, folder)
    limits = SamplerLimits(n_pages=64, page_tokens=8, max_running=16, prefill_tokens=32)
    sampler = Sampler(trainer.decoder, trainer.attention, trainer.head, limits, refuse, text_only())
    states = [state_of(place, folder, LoraSpec(rank, 0)) for rank in (4, 2)]
    adapters = [*(state.publish() for state in states), None]
    for index, prompt in enumerate(prompts):
        op = sample_op(prompt, request=str(index), n=2, routes=True)
        sampler.admit(op, adapters[index % len(adapters)])
    answers = drain(sampler)
    found = [answers[str(index)] for index in range(len(prompts))]
    return [(dict(each.tokens), dict(each.logprobs), dict(each.routes)) for each in found]


def saved_again(place: Place, folder: Path, lora: LoraSpec, source: str, target: str) -> bool:
    """Writes a checkpoint of what another one holds, or (no `source`) of an adapter with moments."""
    state = state_of(place, folder, lora)
    if source:
        state.master.zero_()
        read_checkpoint(Path(source), state, optimizer=True)
    else:
        state.n_steps = 3
        state.moment1.copy_(state.master * 2)
        state.moment2.copy_(state.master**2)
    write_checkpoint(Path(target), state, "tiny")
    return True


@contextmanager
def counted_bytes() -> Iterator[list[int]]:
    """What the exchange sends to other ranks, call by call."""
    sent: list[int] = []
    exchanged, gathered = dist.all_to_all_single, dist.all_gather

    def count_exchange(output: Tensor, given: Tensor, n_received: Any, n_sent: Any, group: Any) -> None:
        rank, row_bytes = group.rank(), given.shape[1]
        sent.append(sum(n for to, n in enumerate(n_sent) if to != rank) * row_bytes)
        exchanged(output, given, n_received, n_sent, group=group)

    def count_gather(output: list[Tensor], given: Tensor, group: Any) -> None:
        sent.append(given.numel() * (group.size() - 1))
        gathered(output, given, group=group)

    exchange.dist.all_to_all_single, exchange.dist.all_gather = count_exchange, count_gather
    try:
        yield sent
    finally:
        exchange.dist.all_to_all_single, exchange.dist.all_gather = exchanged, gathered


def by_one(folder: Path, cases: list[Case], quantize: bool = False) -> list[dict[str, Any]]:
    """What one process gives."""
    return passed(ALONE, folder, cases, quantize)

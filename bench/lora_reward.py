"""`python -m bench.lora_reward`: a LoRA reward on the default model, from pieces of feedback to an update.

Writes bench/results/lora-reward.json: the longest of six updates by 32 pieces of feedback each, and how well held-out
pairs are then ordered against what people really prefer. To be run on an idle machine.
"""

from __future__ import annotations

import time

import numpy as np
import tinker

from bench.record import RESULTS, line, write_record
from bench.reward_model import events_of
from bench.reward_population import Population
from bench.rig import MODEL, Figure, folder
from bench.rows.serve import server
from loreloop.learn.loop.reward.calibration import auc
from loreloop.learn.loop.reward.lora import LoraReward
from loreloop.learn.rendering import renderer_of

N_UPDATES, N_EVENTS = 6, 32


def main() -> None:
    population, seconds = Population(1), []
    with server() as running, tinker.ServiceClient(base_url=running.url, api_key=running.key) as client:
        reward = LoraReward(client, MODEL, renderer_of(folder()))
        for first in range(0, N_UPDATES * N_EVENTS, N_EVENTS):
            started = time.monotonic()
            reward.update(events_of(population.judged(N_EVENTS), first=first))
            seconds.append(time.monotonic() - started)
            print(f"update {len(seconds)} of {N_UPDATES}: {seconds[-1]:.0f} s", flush=True)
        exam = population.judged(60, held_out=True)
        events = events_of(exam)
        better = np.array(reward.score([event.item for event in events]))
        worse = np.array(reward.score([event.worse for event in events if event.worse]))
    lead = np.where([one.said for one in exam], better - worse, worse - better)
    figures = [
        Figure("longest update by 32 pieces of feedback", max(seconds), "s", at_most=90.0),
        Figure("pair AUC, clean labels", auc(lead, np.array([one.clean for one in exam])), "", at_least=0.65),
    ]
    write_record(RESULTS, "lora-reward", __doc__ or "", figures)
    for figure in figures:
        print(line("lora-reward", figure), flush=True)


if __name__ == "__main__":
    main()

"""The whole step of reinforcement learning, as a user sees it: sample, reward, learn."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import tinker
import torch

from bench.baselines.peft_model import PeftBaseline
from bench.baselines.side_process import side_process
from bench.peers import TRL
from bench.rig import (
    MODEL,
    Figure,
    Ids,
    Side,
    alternating,
    best_threads,
    datum,
    engine,
    folder,
    new_model,
    random_ids,
    run_samples,
    sample_op,
    saved_revision,
    timed,
    train_step,
)
from bench.rows.serve import server

PROMPTS, ANSWERS, PROMPT_TOKENS, ANSWER_TOKENS = 8, 16, 40, 16  # trl_grpo.py, elsewhere, says the same
TRL_MICRO_BATCH = 32  # the best of 16, 32, 64 and 128
PEFT_MICRO_BATCHES = (4, 8, 16, 32)  # the best of them is taken


def rl_step() -> list[Figure]:
    """8 prompts x 16 answers, prompt 40, answer 16, through the SDK; against a loop of `peft`, and `trl`."""
    rng = np.random.default_rng(0)
    prompts = [random_ids(rng, PROMPT_TOKENS) for _ in range(PROMPTS)]
    advantages = rng.choice([-1.0, 1.0], PROMPTS * ANSWERS)
    baseline = PeftBaseline(folder())
    n_threads = _our_threads(prompts)
    with (
        server("--threads", str(n_threads)) as running,
        tinker.ServiceClient(base_url=running.url, api_key=running.key) as service,
        _trl_side() as trl,
    ):
        client = service.create_lora_training_client(MODEL, rank=32, train_unembed=False).result()
        micro_batch = _peft_micro_batch(baseline)
        turns = alternating(
            {
                "ours": Side(lambda: _our_step(client, prompts, advantages), n_threads=n_threads),
                "peft": Side(
                    lambda: baseline.grpo_step(prompts, ANSWERS, ANSWER_TOKENS, advantages, micro_batch),
                    lambda: baseline.grpo_step(prompts[:2], 8, 4, advantages[:16], micro_batch),
                ),
            }
            | trl
        )
    return turns.note(_figures(turns.seconds, micro_batch))


def _our_threads(prompts: list[Ids]) -> int:
    """The best number for an engine like the server's, on a small piece of such a step."""
    running = engine()
    new_model(running)
    revision = saved_revision(running)
    data = [datum(random_ids(np.random.default_rng(i), PROMPT_TOKENS + ANSWER_TOKENS)) for i in range(16)]

    def trial() -> None:
        run_samples(running, [sample_op("s", prompts[0], revision, 8, seed=0, n=ANSWERS)])
        train_step(running, data)

    return best_threads(trial)


def _peft_micro_batch(baseline: PeftBaseline) -> int:
    """By the seconds a row of one micro-batch, the better of two tries."""
    tokens_BT = torch.from_numpy(random_ids(np.random.default_rng(0), 32 * (PROMPT_TOKENS + ANSWER_TOKENS)))
    tokens_BT = tokens_BT.reshape(32, -1)
    baseline.model.train()

    def seconds_a_row(n: int) -> float:
        work = functools.partial(baseline.policy_gradient, tokens_BT[:n], torch.ones(n), ANSWER_TOKENS)
        return min(timed(work) for _ in range(2)) / n

    best = min(PEFT_MICRO_BATCHES, key=seconds_a_row)
    baseline.optimizer.zero_grad()
    return best


@contextmanager
def _trl_side() -> Iterator[dict[str, Side]]:
    """With peft's number of threads, as it computes with the same; no side where no environment for it was made."""
    if TRL.python:
        arguments = [folder(), "--micro-batch", TRL_MICRO_BATCH]
        with side_process(TRL.python, "trl_grpo.py", arguments) as process:
            yield {"trl": Side(process.work, set_threads=process.set_threads)}
    else:
        yield {}


def _figures(seconds: dict[str, float], micro_batch: int) -> list[Figure]:
    figures = [
        Figure("RL step through the SDK", seconds["ours"], "s"),
        Figure("RL step of the peft loop", seconds["peft"], "s"),
        Figure("the peft loop's micro-batch", micro_batch, "answers"),
        Figure("RL step: over peft", seconds["peft"] / seconds["ours"], "x", at_least=4.0),
    ]
    name, faster_name = "RL step of trl", "RL step: over the faster of the two"
    if "trl" not in seconds:
        return [*figures, TRL.missing(name, "s"), TRL.missing(faster_name, at_least=4.0)]
    faster = min(seconds["peft"], seconds["trl"]) / seconds["ours"]
    return [*figures, Figure(name, seconds["trl"], "s"), Figure(faster_name, faster, "x", at_least=4.0)]


def _our_step(client: tinker.TrainingClient, prompts: list[Ids], advantages: np.ndarray) -> None:
    sampler = client.save_weights_and_get_sampling_client().result()
    params = tinker.SamplingParams(max_tokens=ANSWER_TOKENS, temperature=1.0)
    asked = [sampler.sample(tinker.ModelInput.from_ints(p.tolist()), ANSWERS, params) for p in prompts]
    sequences = [
        (p, sequence) for p, future in zip(prompts, asked, strict=True) for sequence in future.result().sequences
    ]
    data = [answer_datum(p, s, a) for (p, s), a in zip(sequences, advantages.tolist(), strict=True)]
    passed = client.forward_backward(data, "importance_sampling")
    stepped = client.optim_step(tinker.AdamParams(learning_rate=1e-5))
    passed.result()
    stepped.result()


def answer_datum(prompt: Ids, sequence: tinker.SampledSequence, advantage: float) -> tinker.Datum:
    tokens = [*prompt.tolist(), *sequence.tokens]
    n_heard = len(prompt) - 1
    columns = {
        "target_tokens": np.array(tokens[1:], np.int64),
        "logprobs": np.array([0.0] * n_heard + list(sequence.logprobs or []), np.float32),
        "advantages": np.array([0.0] * n_heard + [advantage] * len(sequence.tokens), np.float32),
    }
    inputs = {name: tinker.TensorData.from_numpy(values) for name, values in columns.items()}
    return tinker.Datum(model_input=tinker.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=inputs)

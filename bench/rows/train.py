"""Rows of training, against `peft`: plain sequences, groups, episodes, one long sequence."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import numpy as np

from bench.baselines.peft_model import PeftBaseline
from bench.products import step_products
from bench.rig import Figure, Ids, alternating, datum, engine, folder, new_model, random_ids, train_step, with_threads

THREADS = 2


def train() -> list[Figure]:
    """Forward, backward and Adam on 16 × 256 tokens, rank 32, attention and MLP; and with the unembedding too."""
    return [*_plain(unembed=False), *_plain(unembed=True)]


def _plain(*, unembed: bool) -> list[Figure]:
    running, rng = engine(), np.random.default_rng(0)
    new_model(running, unembed=unembed)
    sequences = [random_ids(rng, 257) for _ in range(16)]
    data = [datum(tokens) for tokens in sequences]
    baseline = PeftBaseline(folder(), unembed=unembed)
    per_batch = running.config.train_tokens // 256
    seconds = alternating(
        {
            "ours": with_threads(THREADS, lambda: train_step(running, data)),
            "products": with_threads(
                THREADS, lambda: _repeat(16 // per_batch, step_products, running, [256] * per_batch)
            ),
            "peft": with_threads(THREADS, lambda: baseline.train(sequences, [1] * 16, micro_batch=4)),
        }
    )
    name = "16 x 256, unembedding too" if unembed else "16 x 256"
    return [
        Figure(f"{name}: tokens/s", 4096 / seconds["ours"], "tokens/s"),
        Figure(f"{name}: peft's tokens/s", 4096 / seconds["peft"], "tokens/s"),
        Figure(f"{name}: over peft", seconds["peft"] / seconds["ours"], "x", at_least=1.5),
        Figure(f"{name}: step over its products", seconds["ours"] / seconds["products"], "x", at_most=1.35),
    ]


def _repeat(times: int, work, *arguments: object) -> None:  # type: ignore[no-untyped-def]
    for _ in range(times):
        work(*arguments)


def train_groups() -> list[Figure]:
    """4 prompts of 512 tokens, 16 answers of 64 to each."""
    rng = np.random.default_rng(0)
    sequences = []
    for _ in range(4):
        prompt = random_ids(rng, 512)
        sequences += [np.concatenate([prompt, random_ids(rng, 64)]) for _ in range(16)]
    return _against_peft("4 x 16 x (512 + 64)", sequences, [512] * 64, micro_batch=4, at_least=7.0)


def train_episodes() -> list[Figure]:
    """8 episodes of 6 turns, 96 tokens heard and 32 spoken a turn, sent as six growing data each."""
    rng = np.random.default_rng(0)
    sequences, firsts = [], []
    for _ in range(8):
        episode = random_ids(rng, 6 * 128)
        for turn in range(6):
            sequences.append(episode[: (turn + 1) * 128])
            firsts.append(turn * 128 + 96)
    return _against_peft("8 x 6 turns of 96 + 32", sequences, firsts, micro_batch=4, at_least=5.0)


def _against_peft(
    name: str, sequences: list[Ids], firsts: list[int], micro_batch: int, at_least: float
) -> list[Figure]:
    running = engine()
    new_model(running)
    baseline = PeftBaseline(folder())
    data = [datum(tokens, first) for tokens, first in zip(sequences, firsts, strict=True)]
    seconds = alternating(
        {
            "ours": with_threads(THREADS, functools.partial(train_step, running, data)),
            "peft": with_threads(THREADS, lambda: baseline.train(sequences, firsts, micro_batch)),
        }
    )
    n_tokens = sum(map(len, sequences))
    return [
        Figure(f"{name}: tokens/s", n_tokens / seconds["ours"], "tokens/s"),
        Figure(f"{name}: peft's tokens/s", n_tokens / seconds["peft"], "tokens/s"),
        Figure(f"{name}: over peft", seconds["peft"] / seconds["ours"], "x", at_least=at_least),
    ]


def train_long() -> list[Figure]:
    """One sequence of 8,192 tokens: speed against peft with and without its checkpointing, and memory above weights."""
    running, rng = engine(), np.random.default_rng(0)
    new_model(running)
    tokens = random_ids(rng, 8192)
    data = [datum(tokens)]
    plain, checkpointing = PeftBaseline(folder()), PeftBaseline(folder(), checkpointing=True)
    seconds = alternating(
        {
            "ours": with_threads(THREADS, lambda: train_step(running, data)),
            "plain": with_threads(THREADS, lambda: plain.train([tokens], [1], micro_batch=1)),
            "checkpointing": with_threads(THREADS, lambda: checkpointing.train([tokens], [1], micro_batch=1)),
        }
    )
    peak = {side: _peak_bytes(side) for side in ("ours", "peft")}
    return [
        Figure("8,192: tokens/s", 8191 / seconds["ours"], "tokens/s"),
        Figure("8,192: over peft", seconds["plain"] / seconds["ours"], "x", at_least=1.0),
        Figure("8,192: over peft with checkpointing", seconds["checkpointing"] / seconds["ours"], "x", at_least=1.0),
        Figure("8,192: peak above the weights", peak["ours"] / 1e6, "MB"),
        Figure("8,192: peak over peft's", peak["ours"] / peak["peft"], "x", at_most=1 / 3),
    ]


def _peak_bytes(side: str) -> int:
    """In a process of its own, where nothing else is counted."""
    command = [sys.executable, "-m", "bench.rows.train", side]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def _memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def _long_step(side: str) -> None:
    """Prints the bytes at the peak of one step over those after loading."""
    tokens = random_ids(np.random.default_rng(0), 8192)
    if side == "ours":
        running = engine()
        new_model(running)
    else:
        baseline = PeftBaseline(folder())
    loaded = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    if side == "ours":
        train_step(running, [datum(tokens)])
    else:
        baseline.train([tokens], [1], micro_batch=1)
    print(_memory("VmHWM") - loaded)


if __name__ == "__main__":
    _long_step(sys.argv[1])

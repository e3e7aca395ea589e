"""`python -m bench.plan_times`: training steps, reading of prompts and drawing of tokens of random models of several
shapes on this processor, and the planner's constants fitted to one half of them and held against the other.

Writes bench/results/plan-times.json with every observation, so that a fit can be repeated (`--fit FILE`). `--quick`
measures two small shapes, to see that the script works; its figures are kept only where `--results` says so. To be run
on an idle machine; it takes half an hour or less.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.plan_fit import KINDS, figures_of
from bench.record import RESULTS, line, write_record
from bench.rig import (
    Figure,
    datum,
    decode_steps,
    n_cores,
    new_model,
    random_ids,
    run_samples,
    sample_op,
    saved_revision,
    timed,
    train_step,
)
from loreloop.cli.serve import MEMORY
from loreloop.config import EngineConfig
from loreloop.engine.local import LocalEngine

RANK = 32
BATCH_ROWS = 512  # of a training micro-batch, and of a chunk of prompts
NEW_TOKENS = 32  # drawn behind a prompt, while steps are timed
PLAIN = {"model_type": "llama", "vocab_size": 49_152, "max_position_embeddings": 4096}
# The first has the default model's shape. Widths, layers, vocabularies and feed-forwards differ, so that no constant
# can stand for another.
SHAPES: dict[str, dict[str, Any]] = {
    "default": PLAIN | {"sizes": (576, 1536, 30), "heads": (9, 3)},
    "wide": PLAIN | {"sizes": (1536, 4096, 6), "heads": (24, 8), "vocab_size": 16_384},
    "narrow": PLAIN | {"sizes": (320, 1280, 24), "heads": (5, 5), "vocab_size": 8_192},
    "middle": PLAIN | {"sizes": (896, 2560, 14), "heads": (14, 2), "vocab_size": 32_768},
    "flat": PLAIN | {"sizes": (768, 3072, 4), "heads": (12, 4), "vocab_size": 65_536},
    "experts": PLAIN | {"model_type": "qwen3_moe", "sizes": (512, 512, 10), "heads": (8, 4), "vocab_size": 16_384},
}
QUICK_SHAPES: dict[str, dict[str, Any]] = {
    "small": PLAIN | {"sizes": (128, 384, 4), "heads": (4, 2), "vocab_size": 4096},
    "smaller": PLAIN | {"sizes": (192, 512, 3), "heads": (6, 3), "vocab_size": 2048},
}


@dataclass(frozen=True)
class Size:
    """So many sequences of so many tokens: trained, read, or there already when tokens are drawn."""

    n: int
    tokens: int


SIZES: dict[str, tuple[Size, ...]] = {
    "train": (Size(1, 128), Size(1, 256), Size(3, 128), Size(1, 512), Size(2, 512), Size(6, 256)),
    "read": (Size(1, 64), Size(1, 128), Size(1, 256), Size(1, 512), Size(4, 256), Size(4, 512)),
    "draw": (Size(1, 64), Size(1, 512), Size(4, 64), Size(8, 256), Size(16, 64), Size(16, 256), Size(32, 64)),
}
QUICK_SIZES: dict[str, tuple[Size, ...]] = {
    "train": (Size(1, 128), Size(2, 128), Size(1, 256)),
    "read": (Size(1, 64), Size(1, 128), Size(2, 128)),
    "draw": (Size(1, 64), Size(4, 64), Size(8, 64)),
}


@dataclass(frozen=True)
class Plan:
    """What is measured, and how often each: the median counts."""

    shapes: dict[str, dict[str, Any]]
    sizes: dict[str, tuple[Size, ...]]
    turns: int


WHOLE, QUICK = Plan(SHAPES, SIZES, 3), Plan(QUICK_SHAPES, QUICK_SIZES, 2)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.plan_times", description=__doc__)
    parser.add_argument("--threads", type=int, nargs="*", help="counts of threads; without it 1 and one for each core")
    parser.add_argument("--quick", action="store_true", help="two small shapes, in a minute")
    parser.add_argument("--results", type=Path, help="a folder for the record")
    parser.add_argument("--fit", type=Path, help="a record whose observations are fitted; nothing is measured")
    options = parser.parse_args(arguments)
    if options.fit:
        _tell(figures_of(json.loads(options.fit.read_text())))
        return 0
    started = time.monotonic()
    record = measured(QUICK if options.quick else WHOLE, options.threads or sorted({1, n_cores()}))
    figures = figures_of(record)
    results = options.results or (None if options.quick else RESULTS)
    if results:
        seconds = round(time.monotonic() - started, 1)
        write_record(results, "plan-times", __doc__ or "", figures, seconds=seconds, **record)
    _tell(figures)
    return 0


def _tell(figures: Sequence[Figure]) -> None:
    for figure in figures:
        print(line("plan-times", figure), flush=True)


def measured(plan: Plan, threads: Sequence[int]) -> dict[str, Any]:
    """All observations, with the shapes that they are of and the processor's own limits."""
    observations: list[dict[str, Any]] = []
    configs = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, shape in plan.shapes.items():
            model = Path(folder, name)
            configs[name] = _random_model(model, shape)
            for n_threads in threads:
                for found in _of_shape(model, plan, n_threads):
                    observations.append({"shape": name, "threads": n_threads} | found)
                    print(json.dumps(observations[-1]), file=sys.stderr, flush=True)
    return {
        "observations": observations,
        "shapes": configs,
        "limits": {str(n_threads): _limits(n_threads) for n_threads in threads},
        "settings": {"rank": RANK, "new_tokens": NEW_TOKENS},
    }


def _of_shape(model: Path, plan: Plan, n_threads: int) -> Iterator[dict[str, Any]]:
    config = EngineConfig(
        threads=n_threads, precision="bf16", train_tokens=BATCH_ROWS, kept_tokens=BATCH_ROWS, prefill_tokens=BATCH_ROWS
    )
    running = LocalEngine(config, "random", model, Path(tempfile.mkdtemp()))
    new_model(running, RANK)
    revision, rng = saved_revision(running, rank=RANK), np.random.default_rng(0)
    vocab = running.decoder.spec.vocab_size

    def ids(n: int) -> Any:
        return random_ids(rng, n) % (vocab - 3) + 3

    def once(kind: str, size: Size) -> float:
        if kind == "train":
            # One more, since the last token is only a target.
            data = [datum(ids(size.tokens + 1)) for _ in range(size.n)]
            return timed(lambda: train_step(running, data))
        n_new = NEW_TOKENS if kind == "draw" else 1
        ops = [sample_op(str(i), ids(size.tokens), revision, n_new, seed=i) for i in range(size.n)]
        if kind == "read":
            return timed(lambda: run_samples(running, ops))
        return statistics.median(decode_steps(running, ops))

    for kind in KINDS:
        for size in plan.sizes[kind]:
            once(kind, size)  # warms up
            seconds = statistics.median(once(kind, size) for _ in range(plan.turns))
            # Of a model with experts a micro-batch has more rows, so that each of them still gets enough.
            rows = running.trainer.max_rows if kind == "train" else BATCH_ROWS
            found = {"kind": kind, "n": size.n, "tokens": size.tokens, "batch_rows": rows}
            yield found | {"seconds": float(f"{seconds:.5g}")}


def _random_model(at: Path, shape: dict[str, Any]) -> dict[str, Any]:
    """A folder of a model with random weights; gives its configuration."""
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3MoeConfig

    width, inner, n_layers = shape["sizes"]
    n_heads, n_kv_heads = shape["heads"]
    sizes = {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": n_layers,
        "num_attention_heads": n_heads,
        "num_key_value_heads": n_kv_heads,
        "head_dim": width // n_heads,
        "vocab_size": shape["vocab_size"],
        "max_position_embeddings": shape["max_position_embeddings"],
        "tie_word_embeddings": True,
    }
    if shape["model_type"] == "qwen3_moe":
        experts = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": inner}
        config: Any = Qwen3MoeConfig(**sizes, **experts)
    else:
        config = LlamaConfig(**sizes)
    AutoModelForCausalLM.from_config(config).bfloat16().save_pretrained(at)
    return dict(json.loads((at / "config.json").read_text()))


def _limits(n_threads: int) -> dict[str, float]:
    """Products in bf16 of square matrices, and memory that is copied (read and written), a second: what the shares are
    of. The processor's own kernels may get more of it than the library's product does."""
    torch.set_num_threads(n_threads)
    a, b = (torch.randn(1024, 1024).bfloat16() for _ in "ab")
    big = torch.empty(1 << 26)

    def rate(work: Any, amount: float) -> float:
        work()
        return float(f"{amount / statistics.median(timed(work) for _ in range(5)):.5g}")

    return {"flops": rate(lambda: a @ b, 2 * 1024**3), "memory_rate": rate(big.clone, 2 * 4 * (1 << 26))}


if __name__ == "__main__":
    if any(os.environ.get(key) != value for key, value in MEMORY.items()):
        # As in `python -m bench`: the allocator's settings are those of `loreloop serve`.
        os.execve(sys.executable, [sys.executable, "-m", "bench.plan_times", *sys.argv[1:]], os.environ | MEMORY)
    sys.exit(main(sys.argv[1:]))

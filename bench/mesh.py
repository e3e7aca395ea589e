"""`python -m bench.mesh`: two ranks of one thread beside one process of two, and a mesh of one beside a commit before.

Each side is a process (or two) that waits for its turn; what is compared takes turns within one run. `--before FOLDER`
names a checkout of another commit, whose engine is then a side as well. The model is random, as large as the default
one and with heads that two ranks can share. Wants a machine with two idle cores.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.record import RESULTS, line, write_record
from bench.rig import Figure, datum, decode_steps, new_model, random_ids, sample_op, train_step
from loreloop.config import EngineConfig
from loreloop.engine.local import LocalEngine

WORKS = ("train", "decode", "decode-32")
LEAST, MOST = 0.6, 1.01
TURNS = 5
SUMS = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, help="a checkout of the commit before")
    parser.add_argument("--mesh", default="tp=2", help="of two ranks")
    parser.add_argument("--turns", type=int, default=TURNS, help="of each side, behind one that warms up")
    parser.add_argument("--side", nargs=4, metavar=("RANK", "MESH", "MEETING", "THREADS"), help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help="a folder; without one, a random model is made")
    options = parser.parse_args()
    if options.side:
        rank, mesh, meeting, threads = options.side
        _be_a_side(_engine(options.model, int(rank), mesh, meeting, int(threads)), bool(mesh))
        return
    model = options.model or _random_model(Path(tempfile.mkdtemp()))
    sides = {"alone": _Side.start(model, "", 2), "ranks": _Side.start(model, options.mesh, 1)}
    if options.before is not None:
        sides["before"] = _Side.start(model, "", 2, options.before)
    figures = compared(options.mesh, sides, options.turns)
    write_record(RESULTS, f"mesh-{options.mesh.replace('=', '')}", __doc__ or "", figures)
    for figure in figures:
        print(line("mesh", figure), flush=True)


def compared(mesh: str, sides: dict[str, _Side], turns: int) -> list[Figure]:
    """Ratios of speed: the mesh over one process, and one process over that of the commit before."""
    figures = []
    for work in WORKS:
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for turn in range(turns + 1):
            for name, side in sides.items():
                took = side.does(work)
                if turn:  # the first one warms up
                    seconds[name].append(took)
        median = {name: statistics.median(values) for name, values in seconds.items()}
        figures += [Figure(f"{work}: {name}", 1e3 * took, "ms") for name, took in median.items()]
        figures.append(Figure(f"{work}: {mesh} over one process", median["alone"] / median["ranks"], "x", LEAST))
        if "before" in sides:
            ratio = median["alone"] / median["before"]
            figures.append(Figure(f"{work}: time over that of the commit before", ratio, "x", at_most=MOST))
    for what in ("sum of a row", "sum of 512 rows", "gather of a row's logits"):
        figures.append(Figure(f"{mesh}: {what}", 1e6 * sides["ranks"].does(what), "us"))
    return figures


@dataclass(frozen=True)
class _Side:
    """Processes that do the same work together."""

    processes: list[subprocess.Popen[str]]

    @staticmethod
    def start(model: Path, mesh: str, n_threads: int, checkout: Path | None = None) -> _Side:
        """One process, or with a mesh two ranks, by this checkout's engine or by another's."""
        meeting = str(Path(tempfile.mkdtemp()) / "meeting")
        source = str((checkout or Path(__file__).parent.parent) / "src")
        ranks = range(2 if mesh else 1)
        words = [sys.executable, "-m", "bench.mesh", "--model", str(model), "--side"]
        environment = os.environ | {"PYTHONPATH": source}
        return _Side(
            [
                subprocess.Popen(
                    [*words, str(rank), mesh, meeting, str(n_threads)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env=environment,
                )
                for rank in ranks
            ]
        )

    def does(self, work: str) -> float:
        """Seconds until the last of them is ready."""
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(f"{work}\n")
            process.stdin.flush()
        return max(float(_heard(process)) for process in self.processes)


def _heard(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    if not (said := process.stdout.readline()):
        sys.exit("A side has ended; its error stands above.")
    return said


def _random_model(at: Path) -> Path:
    """135M numbers, as the default model; 8 heads and 4 of keys instead of 9 and 3."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49_152}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64}
    LlamaForCausalLM(LlamaConfig(**sizes, **heads, tie_word_embeddings=True)).save_pretrained(at)
    return at


def _be_a_side(running: LocalEngine, of_several: bool) -> None:
    works = _works(running)
    if of_several:  # told, since the commit before has no places that could be asked
        works |= _collectives(running)
    for name in sys.stdin:
        print(works[name.strip()](), flush=True)


def _engine(model: Path, rank: int, mesh: str, meeting: str, n_threads: int) -> LocalEngine:
    work_dir = Path(tempfile.mkdtemp())
    if not mesh:
        return LocalEngine(EngineConfig(threads=n_threads), "bench", model, work_dir)
    # Only here: the commit before may have other names for it.
    from torch import distributed as dist

    from loreloop.parallel.mesh import parse_mesh
    from loreloop.parallel.place import place_of

    dist.init_process_group("gloo", store=dist.FileStore(meeting, 2), rank=rank, world_size=2)
    config = EngineConfig(threads=n_threads, mesh=mesh)
    return LocalEngine(config, "bench", model, work_dir, place=place_of(parse_mesh(mesh)))


def _collectives(running: LocalEngine) -> dict[str, Callable[[], float]]:
    """Seconds of single collectives, which say what the transport costs."""
    import torch

    from loreloop.parallel.collectives import gathered, summed

    group, spec = running.place.groups["tp"], running.bank.spec

    def repeated(call: Callable[[], object]) -> float:
        call()
        started = time.perf_counter()
        for _ in range(SUMS):
            call()
        return (time.perf_counter() - started) / SUMS

    row, rows, logits = (
        torch.zeros(n, width) for n, width in ((1, spec.d_model), (512, spec.d_model), (1, spec.vocab_size // 2))
    )
    return {
        "sum of a row": lambda: repeated(lambda: summed(row, group)),
        "sum of 512 rows": lambda: repeated(lambda: summed(rows, group)),
        "gather of a row's logits": lambda: repeated(lambda: gathered(logits, group)),
    }


def _works(running: LocalEngine) -> dict[str, Callable[[], float]]:
    rng = np.random.default_rng(0)
    new_model(running)
    data = [datum(random_ids(rng, 257)) for _ in range(8)]
    prompts = [random_ids(rng, 128) for _ in range(32)]

    def train() -> float:
        started = time.perf_counter()
        train_step(running, data)
        return time.perf_counter() - started

    def decode(n_rows: int, n_new: int) -> float:
        ops = [sample_op(f"{i}", prompt, None, n_new, seed=i) for i, prompt in enumerate(prompts[:n_rows])]
        return statistics.median(decode_steps(running, ops))

    return {"train": train, "decode": lambda: decode(1, 64), "decode-32": lambda: decode(32, 32)}


if __name__ == "__main__":
    main()

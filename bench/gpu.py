"""`python -m bench.gpu`: one engine on a GPU, random weights in the shape of Qwen3-8B, against the device's own limits;
before it, experts in 4 bits at Kimi K2's dimensions (`bench.gpu_int4`).

Each part runs in a process of its own, so that it has the whole device and a failing one loses none of the others'
figures; a figure is printed and written to bench/results/gpu-PART.json as soon as it is measured. `--tiny` runs the
same on a small shape, on any device, to see that the script works (with TRITON_INTERPRET=1 the kernels for experts
too); its figures are kept only where `--results` says so. `--only PART` runs one part, and `--tiles` times every tile
of the kernels for experts.

Needs 17 GB of disk for the weights (`--model DIR` keeps them for the next time) and a device of 80 GB: 16.4 GB are
weights, to which training adds 24 GB of activations (165 KB a row and layer) and decoding 43 GB of keys and values.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bench.agreement import agreement
from bench.gpu_int4 import int4_figures, tile_times
from bench.gpu_model import QWEN3_8B, TINY, write_model
from bench.record import RESULTS, line, write_record
from bench.rig import Figure, datum, decode_steps, new_model, random_ids, run_pass, sample_op, saved_revision, timed
from bench.work import base_parameters
from loreloop.config import EngineConfig
from loreloop.engine.local import LocalEngine
from loreloop.kernels.int4_gpu import supports

MODEL_PARTS = ("train", "decode", "mismatch")


@dataclass(frozen=True)
class Decoding:
    """256 rows begin 16 a step, which is the sampler's bound and what `prefill_tokens` has room for. A step in which
    all rows draw comes once the last prompts are done, before the first rows end: `n_new` must be above 16."""

    n_rows: int = 256
    context: int = 1024
    n_new: int = 64
    n_adapters: int = 64
    prefill_tokens: int = 16_384
    cache_mib: int = 40_960  # (1,024 + 64) x 256 tokens of 147,456 bytes are 39,168


TINY_DECODING = Decoding(context=32, n_new=20, n_adapters=2, prefill_tokens=512, cache_mib=64)


@dataclass(frozen=True)
class Bench:
    """What every part is given; the device's limits are measured by whoever compares with them."""

    device: str
    tiny: bool
    model: Path

    def limits(self) -> tuple[float, float]:
        """bf16 products in FLOP/s at n x n x n, memory in bytes/s of a copy (read and written)."""
        n = 512 if self.tiny else 8192
        a, b = (torch.randn(n, n, device=self.device).bfloat16() for _ in "ab")
        flops = 2 * n**3 / self.seconds_of(lambda: a @ b)
        big = torch.empty(n * n, device=self.device)
        return flops, 2 * 4 * n * n / self.seconds_of(big.clone)

    def seconds_of(self, work: Callable[[], object], turns: int = 5) -> float:
        """Median, after one turn that warms up."""

        def finished() -> None:
            work()
            if self.device == "cuda":
                torch.cuda.synchronize()

        return float(np.median([timed(finished) for _ in range(turns + 1)][1:]))

    def engine(self, **settings: object) -> LocalEngine:
        config = EngineConfig(device=self.device, **settings)  # type: ignore[arg-type]
        return LocalEngine(config, "random", self.model, Path(tempfile.mkdtemp()))

    def peak(self) -> list[Figure]:
        """What the device has held at most, weights and cache included."""
        if self.device != "cuda":
            return []
        return [Figure("device memory at its peak", torch.cuda.max_memory_allocated() / 1e9, "GB")]


def limits(bench: Bench) -> Iterator[Figure]:
    """The device's own: bf16 products of 8,192 x 8,192 matrices, and a copy of 268 MB (read and written)."""
    flops, bandwidth = bench.limits()
    yield Figure("bf16 products", flops / 1e12, "TFLOP/s")
    yield Figure("memory", bandwidth / 1e9, "GB/s")


def int4(bench: Bench) -> Iterator[Figure]:
    """Experts in 4 bits at Kimi K2's dimensions: the least time of bytes or products over the kernels' own."""
    if not supports(torch.device(bench.device)):
        missing = "install triton, for a GPU (to try the code on a CPU, set TRITON_INTERPRET=1)"
        yield Figure("experts in 4 bits", None, "x", at_least=0.6, missing=missing)
        return
    yield from int4_figures(*bench.limits(), bench.device, tiny=bench.tiny)


def train(bench: Bench) -> Iterator[Figure]:
    """LoRA of rank 32 on every matrix but the head, 8 x 2,048 tokens, two sequences a micro-batch."""
    flops, _ = bench.limits()
    rows = 128 if bench.tiny else 4096
    running = bench.engine(kv_cache_mib=64 if bench.tiny else 256, train_tokens=rows, kept_tokens=rows)
    rng = np.random.default_rng(0)
    n_sequences, n_tokens = (2, 64) if bench.tiny else (8, 2048)
    new_model(running)
    data = [datum(random_ids(rng, n_tokens)) for _ in range(n_sequences)]
    seconds = bench.seconds_of(lambda: run_pass(running, data), 3)
    n_trained = n_sequences * (n_tokens - 1)
    done = 4 * base_parameters(running.decoder.spec) * n_trained  # forward and input gradient; no base gradient
    yield Figure("tokens/s", n_trained / seconds, "tokens/s")
    yield Figure("LoRA training over the product rate", done / seconds / flops, "x", at_least=0.45)
    yield from bench.peak()


def decode(bench: Bench) -> Iterator[Figure]:
    """Steps in which all of 256 rows draw, context 1,024 and up to 64 more: one adapter of rank 8, and 64 of them."""
    shape = TINY_DECODING if bench.tiny else Decoding()
    _, bandwidth = bench.limits()
    running = bench.engine(
        kv_cache_mib=shape.cache_mib, prefill_tokens=shape.prefill_tokens, resident_revisions=shape.n_adapters
    )
    revisions = [saved_revision(running, f"r{number}", 8) for number in range(shape.n_adapters)]
    spec = running.decoder.spec
    n_bytes = 2 * base_parameters(spec) + shape.n_rows * shape.context * 2 * spec.n_layers * spec.d_kv * 2
    name = f"{shape.n_rows} rows at {shape.context}"

    def step(n_adapters: int) -> float:
        rng = np.random.default_rng(0)
        prompts = [random_ids(rng, shape.context) for _ in range(shape.n_rows)]
        ops = [sample_op(str(i), p, revisions[i % n_adapters], shape.n_new, seed=i) for i, p in enumerate(prompts)]
        seconds = decode_steps(running, ops)
        if not seconds:
            raise RuntimeError(f"In no step all of {shape.n_rows} rows drew a token; more new tokens are needed.")
        return float(np.median(seconds))

    one = step(1)
    yield Figure(f"{name}: step", 1e3 * one, "ms")
    yield Figure(f"{name}: over memory", n_bytes / one / bandwidth, "x", at_least=0.6)
    yield Figure(f"{shape.n_adapters} adapters of rank 8 over one", one / step(shape.n_adapters), "x", at_least=0.8)
    yield from bench.peak()


def mismatch(bench: Bench) -> Iterator[Figure]:
    """Log-probabilities of over 10,000 sampled tokens, sampler against trainer, same adapter of rank 32."""
    running = bench.engine(kv_cache_mib=64 if bench.tiny else 4096)
    yield from agreement(running, "bf16", **({"n_rows": 8, "n_new": 16} if bench.tiny else {}))


PARTS: dict[str, Callable[[Bench], Iterator[Figure]]] = {
    "limits": limits,
    "int4": int4,
    "train": train,
    "decode": decode,
    "mismatch": mismatch,
}


def run_part(name: str, bench: Bench, results: Path | None, *, tiles: bool = False) -> None:
    """Prints each figure, and writes those there are, as soon as it is known."""
    started, figures = time.monotonic(), []
    for figure in PARTS[name](bench):
        figures.append(figure)
        print(line(f"gpu-{name}", figure), flush=True)
        if results:
            seconds = round(time.monotonic() - started, 1)
            about = PARTS[name].__doc__ or ""
            write_record(results, f"gpu-{name}", about, figures, seconds=seconds, **device_facts(bench.device))
    if tiles and name == "int4" and figures[0].value:
        print("\n".join(tile_times(bench.device, tiny=bench.tiny)))


def device_facts(device: str) -> dict[str, object]:
    if device != "cuda":
        return {"device": "a CPU, the tiny shape"}
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError):
        driver = "unknown"
    return {"device": torch.cuda.get_device_name(), "driver": driver, "cuda": torch.version.cuda}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--tiles", action="store_true")
    parser.add_argument("--only", choices=list(PARTS), help="this part alone")
    parser.add_argument("--model", type=Path, help="where the random weights lie, or are to lie")
    parser.add_argument("--results", type=Path, help="where figures are written (bench/results, where there is a GPU)")
    parser.add_argument("--here", action="store_true", help="in this process: what the command starts for each part")
    args = parser.parse_args()
    if args.here and not args.only:
        parser.error("--here goes with --only")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not args.tiny:
        parser.error("there is no GPU here; --tiny runs the script on a small shape")
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(device, args.tiny, args.model or Path(temporary, "model"))
        if args.only in (None, *MODEL_PARTS) and not (bench.model / "config.json").exists():
            write_model(bench.model, TINY if args.tiny else QWEN3_8B, device)
        if args.here:
            run_part(args.only, bench, args.results or (None if args.tiny else RESULTS), tiles=args.tiles)
        else:
            sys.exit(run_all([args.only] if args.only else list(PARTS), bench.model))


def run_all(parts: list[str], model: Path) -> int:
    """Every part in a process of its own, whatever became of those before; 1 if any failed."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # what making the weights has left
    failed = []
    for part in parts:
        command = [sys.executable, "-m", "bench.gpu", *sys.argv[1:], "--only", part, "--model", str(model), "--here"]
        if subprocess.run(command).returncode:
            failed.append(part)
    if failed:
        print(f"Failed: {', '.join(failed)}; the other figures stand.", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    main()

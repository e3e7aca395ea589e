"""The row of the model in 4 bits, against `llama.cpp` on the file that the model came in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from bench.baselines.side_process import side_process
from bench.peers import LLAMA
from bench.rig import MODEL, Figure, Side, alternating, engine, random_ids, run_samples, sample_op, saved_revision
from loreloop.formats.adding import package_file
from loreloop.formats.catalog import PACKAGE_MODELS
from loreloop.protocol.sampling import Revision

N_PROMPT, N_NEW, N_LONG = 64, 128, 512


def decode_int4() -> list[Figure]:
    """One sequence, prompt 64, 128 new tokens, `--quantize int4`, bare and with a rank-32 adapter; llama.cpp bare."""
    running, rng = engine(quantize="int4"), np.random.default_rng(0)
    revision = saved_revision(running)

    def ours(n_prompt: int, n_new: int, adapter: Revision | None) -> Callable[[], object]:
        return lambda: run_samples(running, [sample_op("s", random_ids(rng, n_prompt), adapter, n_new, seed=0)])

    with _llama_sides() as llama:
        turns = alternating(
            {
                "bare": Side(ours(N_PROMPT, N_NEW, None), ours(N_PROMPT, 16, None)),
                "adapter": Side(ours(N_PROMPT, N_NEW, revision), ours(N_PROMPT, 16, revision)),
                "prefill": Side(ours(N_LONG, 1, None), ours(N_LONG, 1, None)),
            }
            | llama
        )
    seconds = turns.seconds
    name = f"1 x ({N_PROMPT} + {N_NEW}), int4"
    figures = [
        Figure(f"{name}: tokens/s", N_NEW / seconds["bare"], "tokens/s"),
        Figure(f"{name}, rank 32: tokens/s", N_NEW / seconds["adapter"], "tokens/s"),
        Figure(f"prompt of {N_LONG}, int4: tokens/s", N_LONG / seconds["prefill"], "tokens/s"),
    ]
    over = f"{name}: over llama.cpp"
    over_rank, over_prompt = (
        f"{name}, rank 32: over llama.cpp's bare model",
        f"prompt of {N_LONG}, int4: over llama.cpp",
    )
    if "llama" not in seconds:
        figures += [
            LLAMA.missing(over, at_least=0.5),
            LLAMA.missing(over_rank, at_least=0.5),
            LLAMA.missing(over_prompt),
        ]
        return turns.note(figures)
    figures += [
        Figure(f"{name}: llama.cpp's tokens/s", N_NEW / seconds["llama"], "tokens/s"),
        Figure(over, seconds["llama"] / seconds["bare"], "x", at_least=0.5),
        Figure(over_rank, seconds["llama"] / seconds["adapter"], "x", at_least=0.5),
        Figure(over_prompt, seconds["llama prefill"] / seconds["prefill"], "x"),
    ]
    return turns.note(figures)


@contextmanager
def _llama_sides() -> Iterator[dict[str, Side]]:
    """llama.cpp's, where there is one."""
    if LLAMA.python:
        with (
            package_file(PACKAGE_MODELS[MODEL]) as file,
            side_process(LLAMA.python, "llama_decode.py", [file]) as process,
        ):
            yield {
                name: Side(
                    lambda n_prompt=n_prompt, n_new=n_new: process.work(n_prompt, n_new),
                    lambda n_prompt=n_prompt, n_try=n_try: process.work(n_prompt, n_try),
                    set_threads=process.set_threads,
                )
                for name, n_prompt, n_new, n_try in (
                    ("llama", N_PROMPT, N_NEW, 16),
                    ("llama prefill", N_LONG, 1, 1),
                )
            }
    else:
        yield {}

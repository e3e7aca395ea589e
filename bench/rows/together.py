"""Training and sampling at once on one engine: what streams feel of it, and what the two rates add up to.

The engine's own loop runs in a thread; times are those at which it sends a stream's tokens, before any HTTP.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from queue import SimpleQueue

import msgspec
import numpy as np

from bench.rig import Figure, datum, engine, new_model, random_ids, sample_op, saved_revision
from loreloop.engine.local import LocalEngine
from loreloop.protocol.link import BatchDone, FromEngine, Restored, Sample, SampleEnd, Submit, ToEngine, Tokens
from loreloop.protocol.training import ForwardBackward
from loreloop.scheduler.loop import Scheduler

STREAMS, NEW_TOKENS = 8, 1024
WARM_SECONDS, SECONDS = 4.0, 30.0
PASS_SEQUENCES, PASS_TOKENS = 4, 256


class Load:
    """One engine kept busy with streams, with passes, or with both; records what its loop sends."""

    def __init__(self, running: LocalEngine, *, streams: int, lengths: tuple[int, ...], gap_ms: int) -> None:
        self.running, self.lengths = running, lengths
        self.inbox: SimpleQueue[ToEngine | None] = SimpleQueue()
        self.rng, self.n_sent, self.seq_id = np.random.default_rng(0), 0, 0
        self.token_times: defaultdict[str, list[float]] = defaultdict(list)
        self.passes: list[tuple[float, int]] = []
        new_model(running)
        self.revision = saved_revision(running)
        config = msgspec.structs.replace(running.config, decode_gap_ms=gap_ms, snapshot_seconds=1e9)
        folder = Path(tempfile.mkdtemp())
        self.loop = Scheduler(running, self.inbox, self._hear, lambda strings: None, config, folder)  # type: ignore[arg-type, return-value]
        self.inbox.put(Restored())
        for _ in range(streams):
            self._stream()
        for _ in range(2 if lengths else 0):
            self._pass()

    def run(self, seconds: float, n_passes: int = 0) -> None:
        """For so long, and until so many passes have ended."""
        thread = threading.Thread(target=self.loop.run)
        thread.start()
        started = time.perf_counter()
        while time.perf_counter() - started < seconds or len(self.passes) < n_passes:
            time.sleep(0.1)
        self.ended = time.perf_counter()
        self.lengths = ()
        self.inbox.put(None)
        thread.join()
        self.running.drop_model("m")
        for request_id in list(self.token_times):
            self.running.cancel_sample(request_id)

    def _hear(self, message: FromEngine) -> None:
        now = time.perf_counter()
        match message:
            case Tokens(request_id):
                self.token_times[request_id].append(now)
            case SampleEnd():
                self._stream()
            case BatchDone(_, ends):
                for _ in ends:
                    self.passes.append((now, sum(self.lengths)))
                    self._pass()

    def _stream(self) -> None:
        self.n_sent += 1
        op = sample_op(f"s{self.n_sent}", random_ids(self.rng, 64), self.revision, NEW_TOKENS, seed=self.n_sent)
        self.inbox.put(Sample(msgspec.structs.replace(op, stream=True)))

    def _pass(self) -> None:
        if self.lengths:
            data = tuple(datum(random_ids(self.rng, n)) for n in self.lengths)
            self.inbox.put(
                Submit(ForwardBackward("m", self.seq_id, f"m:{self.seq_id}", data, "cross_entropy", {}, False))
            )
            self.seq_id += 1

    def gaps(self) -> np.ndarray:
        """Seconds between a stream's tokens, the warm-up aside, ascending."""
        begin = min(times[0] for times in self.token_times.values()) + WARM_SECONDS
        gaps = [np.diff([t for t in times if t > begin]) for times in self.token_times.values()]
        return np.sort(np.concatenate(gaps))

    def sampled_rate(self) -> float:
        """Tokens a second."""
        times = np.sort(np.concatenate(list(self.token_times.values())))
        return float((times > times[0] + WARM_SECONDS).sum() / (times[-1] - times[0] - WARM_SECONDS))

    def trained_rate(self) -> float:
        """Tokens a second, from the end of the first pass to that of the last."""
        (first, _), *rest = self.passes
        return sum(n for _, n in rest) / (rest[-1][0] - first)


def train_while_sampling() -> list[Figure]:
    """Eight streams and passes of 4 x 256 tokens without a pause, together and alone; streams beside 8,192 tokens."""
    running = engine()
    lengths = (PASS_TOKENS,) * PASS_SEQUENCES

    def loaded(streams: int, lengths: tuple[int, ...], gap_ms: int = 200, n_passes: int = 0) -> Load:
        load = Load(running, streams=streams, lengths=lengths, gap_ms=gap_ms)
        load.run(SECONDS, n_passes)
        return load

    sampling, training = loaded(STREAMS, ()).sampled_rate(), loaded(0, lengths, n_passes=3).trained_rate()
    both, unyielding = loaded(STREAMS, lengths, n_passes=3), loaded(STREAMS, lengths, gap_ms=0, n_passes=3)
    long = loaded(STREAMS, (8192,), n_passes=1)
    return [
        Figure("streams alone", sampling, "tokens/s"),
        Figure("training alone", training, "tokens/s"),
        *_gaps("training 4 x 256", both),
        *_gaps("training 8,192", long),
        Figure("both rates over their own", _sum(both, sampling, training), "x", at_least=0.85),
        Figure("the same unyielding", _sum(unyielding, sampling, training), "x", at_least=0.95),
    ]


def _gaps(name: str, load: Load) -> list[Figure]:
    milliseconds = 1e3 * load.gaps()
    return [
        Figure(f"{name}: gap between tokens, p95", float(np.quantile(milliseconds, 0.95)), "ms", at_most=300),
        Figure(f"{name}: gap between tokens, p99", float(np.quantile(milliseconds, 0.99)), "ms", at_most=700),
    ]


def _sum(load: Load, sampling: float, training: float) -> float:
    return load.sampled_rate() / sampling + load.trained_rate() / training

"""Twenty jobs in a queue beside sixteen streams of chat: none is lost, and streams keep their pace."""

from __future__ import annotations

import statistics
import threading
import time

import openai
import pytest

from loreloop.cli.server import RunningServer
from tests.jobs.rig import client_of, started, succeeded, supervised

N_JOBS, N_STREAMS = 20, 16
MOST_TIMES_SLOWER = 8  # the median gap between tokens beside training, over that of the same streams alone


def gaps(server: RunningServer, until: threading.Event, found: list[float]) -> None:
    """Streams answer after answer, and notes the seconds between two tokens."""
    client = client_of(server)
    while not until.is_set():
        last = None
        stream = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "say 1"}], max_tokens=32, stream=True
        )
        for chunk in stream:
            now = time.monotonic()
            if last is not None and chunk.choices and chunk.choices[0].delta.content:
                found.append(now - last)
            last = now


def streaming(server: RunningServer, until: threading.Event) -> tuple[list[threading.Thread], list[float]]:
    found: list[float] = []
    threads = [threading.Thread(target=gaps, args=(server, until, found)) for _ in range(N_STREAMS)]
    for thread in threads:
        thread.start()
    return threads, found


@pytest.mark.slow
@pytest.mark.timed
def test_many_jobs_run_beside_many_streams(server: RunningServer, client: openai.OpenAI) -> None:
    alone, crowded = threading.Event(), threading.Event()
    threads, quiet = streaming(server, alone)
    time.sleep(10)
    alone.set()
    for thread in threads:
        thread.join()
    threads, busy = streaming(server, crowded)
    try:
        jobs = [started(client, method=supervised(n_epochs=2, batch_size=2), seed=n) for n in range(N_JOBS)]
        done = [succeeded(client, job.id, 900) for job in jobs]
    finally:
        crowded.set()
        for thread in threads:
            thread.join()
    assert len({job.fine_tuned_model for job in done}) == N_JOBS
    print(f"median gaps: {statistics.median(quiet):.4f} s alone, {statistics.median(busy):.4f} s beside jobs")
    assert statistics.median(busy) < MOST_TIMES_SLOWER * statistics.median(quiet)

"""More adapters than stay in memory, asked at once over HTTP: each answers as it does alone, each is read once."""

import re
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from loreloop.cli.server import RunningServer
from tests.sdk.clients import fit, trainer

pytestmark = pytest.mark.filterwarnings("ignore")
N, RESIDENT = 24, 16


@pytest.fixture
def client(server: RunningServer):
    headers = {"authorization": f"Bearer {server.key}"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=120) as made:
        yield made


def meter(client: httpx.Client, name: str) -> float:
    return float(re.search(rf'^loreloop_{name}{{model="tiny"}} (.+)$', client.get("/metrics").text, re.M)[1])


def settled(client: httpx.Client) -> tuple[float, float]:
    """Loads and hits, once the engine has told them: it does before it sleeps."""
    while True:
        found = [[meter(client, f"revision_{name}") for name in ("load_seconds_count", "hits_total")] for _ in "ab"]
        if found[0] == found[1] and meter(client, "running_samples") == 0:
            return found[0][0], found[0][1]


def test_each_answers_and_is_read_once(server: RunningServer, client: httpx.Client) -> None:
    training, paths = trainer(server), []
    for number in range(N):
        fit(training, 1)
        paths.append(training.save_weights_for_sampler(f"a{number}").result().path)
    n_loads, n_hits = settled(client)

    def ask(path: str) -> list[float]:
        body = {"model": path, "prompt": "the quick brown", "max_tokens": 4, "seed": 1, "logprobs": 1}
        return client.post("/v1/completions", json=body).json()["choices"][0]["logprobs"]["token_logprobs"]

    with ThreadPoolExecutor(N) as pool:
        pairs = [list(pool.map(ask, (path, path))) for path in paths]  # two strangers for each, at once
        loads, hits = settled(client)
        assert (loads - n_loads) + (hits - n_hits) == 2 * N
        assert N - RESIDENT <= loads - n_loads <= N
        assert list(pool.map(ask, paths)) == [first for first, _ in pairs]
    assert all(first == second for first, second in pairs)
    assert len({tuple(logprobs) for logprobs, _ in pairs}) == N
    assert meter(client, "resident_revisions") == RESIDENT

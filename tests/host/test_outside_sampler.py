"""A server whose samples a sampler outside draws, by the SDK: adapters go there by folders, and it may be lost."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
from tinker import types

from loreloop.cli.outside_base import check_base
from loreloop.cli.server import RunningServer
from loreloop.formats.configuration import read_spec
from loreloop.learn.clients import Clients
from loreloop.learn.plan import Plan
from loreloop.learn.rewarded_methods import settled
from loreloop.learn.settings import CorrectedSettings, DistillSettings, GrpoSettings, PpoSettings
from loreloop.outside.outside_engine import seed_of
from loreloop.outside.server import SamplerServer
from loreloop.protocol.errors import BadRequest
from tests.cli.test_serve_mistakes import served
from tests.host.sampler import sampler, token_at
from tests.host.test_replica_server import base, engines, server, service, trained
from tests.host.test_server import until

PROMPT = [5, 6, 7, 8]


def drawn(client, max_tokens: int = 12, n: int = 2, during=lambda: None) -> list[list[int]]:
    params = types.SamplingParams(max_tokens=max_tokens, seed=3, stop=[])
    asked = client.sample(types.ModelInput.from_ints(PROMPT), num_samples=n, sampling_params=params)
    during()
    return [sequence.tokens for sequence in asked.result().sequences]


def expected(model: str, n_tokens: int = 12) -> list[list[int]]:
    """Of two samples."""
    seeds = [seed_of(3, index, b"") for index in range(2)]
    return [[token_at(model, seed, len(PROMPT) + at) for at in range(n_tokens)] for seed in seeds]


def test_a_sampler_outside_draws_and_is_handed_revisions_once(tmp_path: Path) -> None:
    with sampler() as outside, server(tmp_path / "data", "--sampler", outside.url) as running:
        assert drawn(base(running)) == expected("their-name")
        client = trained(running)
        shown = drawn(client)
        (revision,) = outside.adapters
        assert shown == expected(revision) == drawn(client)
        assert [path for path, _ in outside.log].count("/v1/load_lora_adapter") == 1
        # What only our engines can do, they do: log-probabilities of a prompt.
        scores = client.compute_logprobs(types.ModelInput.from_ints(PROMPT)).result()
        assert len(scores) == len(PROMPT)
        assert [engine["outside"] for engine in engines(running)] == [False, True]


def test_weights_are_truncated_by_themselves_where_a_sampler_outside_draws(tmp_path: Path) -> None:
    given = [GrpoSettings(), PpoSettings(), GrpoSettings(correction="icepop"), DistillSettings()]

    async def corrections(running: RunningServer) -> list[str | None]:
        clients = Clients(service(running), Plan(base_model="tiny"))
        found = [await settled(each, clients) for each in given]
        return [each.correction if isinstance(each, CorrectedSettings) else None for each in found]

    with sampler() as outside, server(tmp_path / "out", "--sampler", outside.url) as running:
        assert asyncio.run(corrections(running)) == ["truncate", "truncate", "icepop", None]
    with server(tmp_path / "own") as running:
        assert asyncio.run(corrections(running)) == ["none", "none", "icepop", None]


def test_samples_of_a_lost_sampler_are_drawn_by_others_and_it_is_used_again(tmp_path: Path) -> None:
    with sampler(token_seconds=0.05) as outside, server(tmp_path / "data", "--sampler", outside.url) as running:
        client, port = base(running), outside.server_port

        def lose() -> None:
            until(lambda: engines(running)[1]["samples"])
            outside.broken = True
            outside.shutdown()
            outside.server_close()

        sequences = drawn(client, 60, during=lose)
        assert [len(one) for one in sequences] == [60, 60]
        assert sequences != expected("their-name", 60), "our own engine drew them"
        with sampler(port=port):
            until(lambda: engines(running)[1]["up"], 60)
            assert drawn(client) == expected("their-name")


def test_a_sampler_that_is_not_there_is_told_at_start(tmp_path: Path, tiny_folder: Path) -> None:
    usual = ["--data", str(tmp_path / "data"), "--model", str(tiny_folder), "--port", "0"]
    code, errors = served(*usual, "--sampler", "http://127.0.0.1:9")
    assert code == 1
    assert "The sampler at http://127.0.0.1:9 does not say what it serves" in errors


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"root": "other"}, "draws from the model in "),
        ({"max_model_len": 1 << 20}, "has a window of 1048576 tokens, and the model here one of "),
    ],
)
def test_a_sampler_of_another_base_is_told_at_start(
    tmp_path: Path, tiny_folder: Path, told: dict[str, str | int], said: str
) -> None:
    shutil.copytree(tiny_folder, tmp_path / "other")
    config = tmp_path / "other" / "config.json"
    config.write_text(config.read_text() + " ")
    usual = ["--data", str(tmp_path / "data"), "--model", str(tiny_folder), "--port", "0"]
    with sampler() as outside:
        outside.told = {name: str(tmp_path / value) if value == "other" else value for name, value in told.items()}
        code, errors = served(*usual, "--sampler", outside.url)
    assert code == 1
    assert said in errors


def test_names_at_a_hub_are_compared_without_their_owners(tiny_folder: Path) -> None:
    spec = read_spec(tiny_folder)
    with sampler() as outside:
        server = SamplerServer(outside.url)
        outside.told = {"root": "somebody/ours-1b", "max_model_len": spec.context_window}
        check_base(server, tiny_folder, spec, "people/Ours-1B")
        with pytest.raises(
            BadRequest, match="draws from somebody/ours-1b, and the model here is people/Ours-1B-Instruct"
        ):
            check_base(server, tiny_folder, spec, "people/Ours-1B-Instruct")


def test_deterministic_draws_and_a_sampler_outside_exclude_each_other(tmp_path: Path, tiny_folder: Path) -> None:
    usual = ["--data", str(tmp_path / "data"), "--model", str(tiny_folder), "--port", "0"]
    code, errors = served(*usual, "--sampler", "http://127.0.0.1:9", "--deterministic")
    assert code != 0
    assert "Leave one of the two out" in errors

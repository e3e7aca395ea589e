"""An adapter that peft made, brought to a running server: sampled, deployed, trained further, and taken away again."""

import json
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import tinker
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from loreloop.cli.server import RunningServer
from tests.sdk.clients import IDS, datum, fit, prompt, service

pytestmark = pytest.mark.filterwarnings("ignore")


def published(base: Path) -> AutoModelForCausalLM:
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


def made(base: Path, folder: Path, **settings: object) -> Path:
    torch.manual_seed(3)
    usual = {"r": 4, "lora_alpha": 7, "target_modules": ["q_proj", "down_proj"], "rank_pattern": {"q_proj": 6}}
    model = get_peft_model(published(base), LoraConfig(task_type="CAUSAL_LM", **(usual | settings)))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


def peft_logprobs(base: Path, folder: Path) -> torch.Tensor:
    with torch.no_grad():
        logits = PeftModel.from_pretrained(published(base), folder)(torch.tensor([IDS])).logits[0, :-1]
    return logits.log_softmax(-1)[range(len(IDS) - 1), IDS[1:]]


def run(server: RunningServer, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loreloop.cli", *arguments, "--data", str(server.data)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def key_id(server: RunningServer) -> str:
    rows = json.loads(run(server, "keys", "list", "--json").stdout)
    return next(row["id"] for row in rows if row["name"] == "local")


@pytest.fixture(scope="module")
def folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tiny_folder, tmp_path_factory.mktemp("peft") / "theirs")


@pytest.fixture(scope="module")
def paths(server: RunningServer, folder: Path) -> list[str]:
    done = run(server, "models", "import-adapter", str(folder), "--base", "tiny", "--key", key_id(server))
    assert done.returncode == 0, done.stderr
    found = re.findall(r"tinker://\S+", done.stdout)
    assert [path.rpartition("/")[2] for path in found] == ["theirs", "theirs"]
    return found


def own_logprobs(sampler: tinker.SamplingClient) -> torch.Tensor:
    return torch.tensor(sampler.compute_logprobs(prompt(IDS)).result()[1:])


def test_it_is_sampled_with_peft_s_log_probs(
    server: RunningServer, tiny_folder: Path, folder: Path, paths: list[str]
) -> None:
    sampler = service(server).create_sampling_client(model_path=paths[0]).result()
    theirs = peft_logprobs(tiny_folder, folder)
    assert (own_logprobs(sampler) - theirs).abs().max() <= 1e-4
    bare = own_logprobs(service(server).create_sampling_client(base_model="tiny").result())
    assert (bare - theirs).abs().max() > 0.01


def test_it_is_deployed(server: RunningServer, paths: list[str]) -> None:
    assert run(server, "deploy", "set", "theirs", paths[0]).returncode == 0
    body = {"model": "theirs", "prompt": "the", "max_tokens": 1}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, headers={"authorization": f"Bearer {server.key}"})
    assert answer.headers["x-loreloop-revision"] == paths[0]


def test_it_is_trained_further_and_leaves_again(
    server: RunningServer, tiny_folder: Path, folder: Path, paths: list[str], tmp_path: Path
) -> None:
    client = service(server).create_training_client_from_state(paths[1]).result()
    passed = client.forward([datum()], "cross_entropy").result().loss_fn_outputs[0]["logprobs"].to_torch()
    assert (passed - peft_logprobs(tiny_folder, folder)).abs().max() <= 1e-4
    losses = fit(client, 4)
    assert losses[-1] < losses[0]
    saved = client.save_state("on").result().path
    assert run(server, "models", "export", "tiny", saved, str(tmp_path / "out"), "--form", "peft").returncode == 0
    own = own_logprobs(client.save_weights_and_get_sampling_client().result())
    assert (own - peft_logprobs(tiny_folder, tmp_path / "out")).abs().max() <= 1e-4
    resumed = service(server).create_training_client_from_state_with_optimizer(paths[1]).result()
    assert resumed.get_info().lora_rank == 6


def test_every_path_that_is_printed_can_be_exported(
    server: RunningServer, tiny_folder: Path, folder: Path, paths: list[str], tmp_path: Path
) -> None:
    for number, adapter in enumerate([*paths, str(folder)]):
        target = tmp_path / str(number)
        assert run(server, "models", "export", "tiny", adapter, str(target), "--form", "peft").returncode == 0
        assert (peft_logprobs(tiny_folder, target) - peft_logprobs(tiny_folder, folder)).abs().max() <= 1e-4
    for wrong, named in {"nowhere": "neither a folder", "tinker://a/weights/b": "There is no checkpoint"}.items():
        done = run(server, "models", "export", "tiny", wrong, str(tmp_path / "out"))
        assert done.returncode == 1
        assert named in done.stderr


def test_what_is_refused_leaves_no_trace(server: RunningServer, tiny_folder: Path, tmp_path: Path) -> None:
    folder = made(tiny_folder, tmp_path / "dora", use_dora=True)
    before = sorted((server.data / "checkpoints").glob("*"))
    done = run(server, "models", "import-adapter", str(folder), "--base", "tiny", "--key", key_id(server))
    assert done.returncode == 1
    assert "use_dora" in done.stderr
    assert sorted((server.data / "checkpoints").glob("*")) == before


def test_its_owner_must_be_clear(server: RunningServer, folder: Path, tmp_path: Path) -> None:
    run(server, "keys", "create", "second")
    for given in ([], ["--key", "nobody"]):
        done = run(server, "models", "import-adapter", str(folder), "--base", "tiny", *given)
        assert done.returncode == 1
        assert "(local)" in done.stderr
        assert "(second)" in done.stderr


def test_without_a_server_it_is_there_when_one_starts(tiny_folder: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny").symlink_to(tiny_folder)
    place = RunningServer("", "", 0, tmp_path)
    arguments = ("models", "import-adapter", str(folder), "--base", "tiny", "--name", "mine")
    assert "keys create" in run(place, *arguments).stderr
    run(place, "keys", "create", "only")
    done = run(place, *arguments)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "checkpoints").glob("*/*weights/mine/adapter_model.safetensors"))) == 2
